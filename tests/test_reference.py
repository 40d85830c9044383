"""docs/reference.md names every environment variable and every public name, and no variable that does not exist."""

from __future__ import annotations

import re
from pathlib import Path

import prebake
from prebake import errors

ROOT = Path(__file__).parent.parent
VARIABLE = re.compile(r"\bPREBAKE_[A-Z]+(?:_[A-Z]+)*\b")


def _documented() -> str:
    return (ROOT / "docs" / "reference.md").read_text(encoding="utf-8")


def _in_sources() -> set[str]:
    folders = ("runtime/prebake", "build/prebake_build", "service/image_analyzer")
    modules = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    texts = [path.read_text(encoding="utf-8") for path in [*modules, ROOT / "Dockerfile", ROOT / "docker-bake.hcl"]]
    return {name for text in texts for name in VARIABLE.findall(text)}


def test_variables_are_those_of_the_sources() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", _documented(), re.MULTILINE)
    assert {name for name in rows if name.startswith("PREBAKE_")} == _in_sources()
    assert set(VARIABLE.findall(_documented())) == _in_sources()


def test_every_public_name_has_an_entry() -> None:
    headings = re.findall(r"^### `prebake\.(\w+)`$", _documented(), re.MULTILINE)
    expected = set(prebake.__all__) - {"PrebakeError"}  # that one is in the table of errors
    assert sorted(set(headings) - {"commands", "services"}) == sorted(expected)


def test_every_error_has_a_row_with_its_exit_code() -> None:
    rows = re.findall(r"^\| `(\w+Error)` \|.*\| (\d) \|$", _documented(), re.MULTILINE)
    assert [(name, int(code)) for name, code in rows] == [(name, getattr(errors, name).exit_code) for name, _ in rows]
    assert sorted(name for name, _ in rows) == errors.__all__
