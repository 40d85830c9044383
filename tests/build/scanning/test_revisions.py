"""The branch or tag that a service asks for stands in the source, where the commit alone would not be found."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from prebake.adopt.loads import Load
from prebake_build.scanning.findings import findings_of
from prebake_build.scanning.revisions import named

ONE, OTHER = "1" * 40, "2" * 40


def load(commit: str, asked: str | None, **changes: Any) -> Load:
    detail = {} if asked is None else {"revision": asked}
    values: dict[str, Any] = {"class_": "transformers:BertModel", "dtype": "float32", "detail": detail} | changes
    return Load(library="t", function="f", uri=f"hf:acme/tiny@{commit}", **values)


def found(*loads: Load) -> list[tuple[str | None, int]]:
    return [(finding.uri, finding.loads) for finding in named(findings_of(loads, Path("/project")))]


@pytest.mark.parametrize(
    ("loads", "expected"),
    [
        ([load(ONE, "main")], [(f"hf:acme/tiny@{ONE}", 1)]),
        ([load(ONE, None)], [(f"hf:acme/tiny@{ONE}", 1)]),
        ([load(ONE, "v1")], [(f"hf:acme/tiny@v1@{ONE}", 1)]),
        ([load(ONE, "main"), load(ONE, None)], [(f"hf:acme/tiny@{ONE}", 2)]),
        ([load(ONE, "main"), load(ONE, "v1"), load(ONE, "v1")], [(f"hf:acme/tiny@v1@{ONE}", 3)]),
        ([load(ONE, "main"), load(OTHER, "v1")], [(f"hf:acme/tiny@main@{ONE}", 1), (f"hf:acme/tiny@v1@{OTHER}", 1)]),
        ([load(ONE, "main"), load(OTHER, None)], [(f"hf:acme/tiny@main@{ONE}", 1), (f"hf:acme/tiny@{OTHER}", 1)]),
        ([load(ONE, "v1"), load(ONE, "v2")], [(f"hf:acme/tiny@v1@{ONE}", 1), (f"hf:acme/tiny@v2@{ONE}", 1)]),
        ([load(ONE, "v1", obstacle="remote code")], [(f"hf:acme/tiny@{ONE}", 1)]),
    ],
    ids=["default", "commit", "name", "default and commit", "default and name", "two", "two, one by commit",
         "two names", "not baked"],
)  # fmt: skip
def test_names_that_a_service_asks_for(loads: list[Load], expected: list[tuple[str, int]]) -> None:
    assert found(*loads) == expected


def test_an_unpinned_source_and_a_path_stay() -> None:
    loads = [
        Load(library="t", function="f", uri=uri, class_="transformers:BertModel")
        for uri in ("hf:acme/tiny@v1", "path:/project/a")
    ]
    assert found(*loads) == [("hf:acme/tiny@v1", 1), ("path:a", 1)]
