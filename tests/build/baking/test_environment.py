"""The key of a conversion changes with everything that can change its bytes, and with nothing else."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from helpers import ROOT
from prebake_build.baking import environment
from prebake_build.baking.environment import BUILD, RUNTIME, environment_of
from prebake_build.declared.spec import ModelSpec

RECIPE = "sha256:" + "1" * 64
MODEL = ModelSpec(name="m", source="path:c")
OWN = replace(MODEL, family="torch", class_="factory_app.models:make")


def key(model: ModelSpec = MODEL, recipe: str = RECIPE) -> str:
    found = environment_of(model, recipe)
    assert found is not None
    return found.key


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with a factory, which imports a module beside it; the current folder."""
    (tmp_path / "factory_app").mkdir()
    (tmp_path / "factory_app" / "models.py").write_text("import factory_parts\n")
    (tmp_path / "factory_parts.py").write_text("import json, absent_package\n")
    (tmp_path / "unrelated.py").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_it_is_the_same_again() -> None:
    assert key() == key()
    assert re.fullmatch("[0-9a-f]{32}", key())
    assert key(recipe="sha256:" + "2" * 64) != key()


@pytest.mark.parametrize("package", ["torch", "transformers", "safetensors", "timm"])
def test_another_version_of_a_library_is_another_key(package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    monkeypatch.setattr(environment, "version", lambda name: "99.1" if name == package else version(name))
    assert key() != before
    found = environment_of(MODEL, RECIPE)
    assert found and found.versions[package] == "99.1"


@pytest.mark.parametrize(
    "change",
    [
        lambda patch: patch.setattr("platform.machine", lambda: "riscv64"),
        lambda patch: patch.setattr("platform.python_version_tuple", lambda: ("3", "99", "1")),
        lambda patch: patch.setattr(environment, "_converter", lambda: "sha256:0"),
        lambda patch: patch.setenv("PREBAKE_WORKER_ENV", "MINE"),
    ],
    ids=["machine", "python", "converter", "variable"],
)
def test_what_else_decides_bytes(change: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch) -> None:
    before = key()
    change(monkeypatch)
    assert key() != before


def test_the_value_of_a_passed_variable_counts_and_no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREBAKE_WORKER_ENV", "MINE")
    before = key()
    monkeypatch.setenv("THEIRS", "1")
    assert key() == before
    monkeypatch.setenv("MINE", "1")
    assert key() != before


@pytest.mark.parametrize(
    ("path", "counts"),
    [("factory_app/models.py", True), ("factory_app/data.json", True), ("factory_parts.py", True),
     ("unrelated.py", False), ("factory_app/__pycache__/models.pyc", False)],
)  # fmt: skip
def test_the_code_of_a_factory_is_in_the_key(app: Path, path: str, counts: bool) -> None:
    before = key(OWN)
    (app / path).parent.mkdir(exist_ok=True)
    with (app / path).open("a") as file:
        file.write("x = 1\n")
    assert (key(OWN) != before) == counts


def test_of_an_installed_factory_it_is_the_version() -> None:
    found = environment_of(replace(MODEL, family="torch", class_="timm.models:make"), RECIPE)
    assert found and re.fullmatch(r"\d+\.\d+.*", found.versions["timm"])


def test_code_that_is_not_found_has_no_key() -> None:
    assert environment_of(replace(OWN, class_="absent_package:make"), RECIPE) is None
    assert environment_of(replace(MODEL, family="absent-family", class_="x"), RECIPE) is None


def test_a_family_of_another_distribution_has_its_code_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        name, value = "scale", "helpers.other_family:ScaleFamily"

    monkeypatch.setattr(environment, "entry_points", lambda group: [Entry()])
    found = environment_of(replace(MODEL, family="scale"), RECIPE)
    assert found and found.versions["helpers"].startswith("sha256:")


def test_packages_that_a_manifest_requires_are_covered_or_not() -> None:
    found = environment_of(MODEL, RECIPE)
    assert found
    assert found.covers({"torch": "1", "sentence_transformers": "1"}) == ("sentence-transformers" in found.versions)
    assert found.covers({"torch": "1"})
    assert not found.covers({"torch": "1", "scale": "1"})


def test_the_converters_code_is_what_the_image_build_copies() -> None:
    text = (ROOT / "workspace.Dockerfile").read_text()
    stage = text[text.index("FROM scratch AS converter-source") : text.index("FROM tools AS converter-built")]
    copied = re.findall(r"(runtime/prebake|build/prebake_build)/(\S+)(?= )", stage)
    for place, rooms in (("runtime/prebake", RUNTIME), ("build/prebake_build", BUILD)):
        assert sorted({room for folder, room in copied if folder == place}) == sorted(rooms)


def test_a_changed_line_of_the_converter_is_another_digest(tmp_path: Path) -> None:
    (tmp_path / "room" / "__pycache__").mkdir(parents=True)
    (tmp_path / "room" / "module.py").write_text("a = 1")
    before = environment._digest([tmp_path / "room"])
    (tmp_path / "room" / "__pycache__" / "module.pyc").write_text("")
    assert environment._digest([tmp_path / "room"]) == before
    (tmp_path / "room" / "module.py").write_text("a = 2")
    assert environment._digest([tmp_path / "room"]) != before
