"""`object.json` is data that anybody may have written: it builds plain objects, or is refused."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.baking import job
from prebake import load
from prebake.baked.manifest import Manifest
from prebake.baked.model import BakedModel
from prebake.errors import DocumentError, IntegrityError, LoadError, PrebakeError
from prebake.modules.saved_object import FILE, SavedObject, Shape, read_shape
from prebake.tiers.loader import TIERS
from prebake_build.baking.worker import run


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A baked file of one tensor `a`."""
    (tmp_path / "c").mkdir()
    torch.save({"a": torch.ones(2)}, tmp_path / "c" / "w.pth")
    run(job(tmp_path / "c", tmp_path / "m", family="tensors", class_=""))
    return tmp_path / "m"


def rewrite(folder: Path, text: str | None = None, **changes: Any) -> None:
    """Another object.json, and a manifest that fits it."""
    manifest = Manifest.read(folder)
    if text is not None:
        (folder / FILE).write_text(text)
    data = (folder / FILE).read_bytes()
    files = tuple(
        dataclasses.replace(file, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        if file.path == FILE
        else file
        for file in manifest.files
    )
    (folder / "manifest.json").write_text(dataclasses.replace(manifest, **({"files": files} | changes)).text)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (["import", "os"], 'has no known tag in "[\\"import\\", \\"os\\"]"'),
        ([], 'has no known tag in "[]"'),
        ([["list"]], 'has no known tag in "[[\\"list\\"]]"'),
        ({"a": 1}, "has a table, which stands for nothing"),
        (["tensor", "b", "tensor", False], 'names the tensor "b", which is not among the weights'),
        (["tensor", "a", "module", False], '"module" is neither tensor nor parameter'),
        (["tensor", "a", "\ud800", False], '"\\ud800" is neither tensor nor parameter'),
        (["torch", ["\ud800"]], "is malformed: "),
        (["tensor", "a"], "is malformed: "),
        (["tensor", "a", "tensor", False, [3]], "is malformed: "),
        (["torch", "load"], '"load" is not a dtype, layout or memory format of torch'),
        (["device", "nowhere"], "is malformed: "),
        (["size", "x"], "is malformed: "),
        (["dict", 1], "is malformed: "),
        (["dict", [["list"], 1]], "is malformed: "),
        (["bytes", "xyz"], "is malformed: "),
        (["ordered", 3], "is malformed: "),
    ],
)  # fmt: skip
def test_a_shape_that_means_nothing_is_refused(value: Any, message: str) -> None:
    with pytest.raises(DocumentError) as error:
        SavedObject(Shape(value), {"a": torch.ones(2)}).object()
    assert str(error.value).startswith(f"{FILE}: {message}")


def test_a_malformed_object_fails_the_load_and_nothing_else(folder: Path) -> None:
    rewrite(folder, '["import", "os"]')
    with pytest.raises(DocumentError, match=r"^object\.json: has no known tag"):
        load(folder)


def test_an_object_that_does_not_fit_its_hash_is_refused(folder: Path) -> None:
    text = (folder / FILE).read_text()
    (folder / FILE).write_text(text.replace('"a"', '"b"', 1))
    with pytest.raises(IntegrityError) as error:
        read_shape(BakedModel.open(folder))
    assert str(error.value) == f"{folder / FILE}: its sha256 differs from the manifest's"
    with pytest.raises(LoadError, match="its sha256 differs from the manifest's"):
        load(folder)


def test_a_folder_without_the_object_is_refused(folder: Path) -> None:
    rewrite(folder, files=tuple(file for file in Manifest.read(folder).files if file.path != FILE))
    with pytest.raises(IntegrityError) as error:
        read_shape(BakedModel.open(folder))
    assert str(error.value) == f"{folder / FILE}: is not among the files of the manifest"


@pytest.mark.parametrize("text", ["{", "[" * 100_000, "\ud800".encode("utf-8", "surrogatepass").decode("latin-1")])
def test_what_is_not_json_is_refused(folder: Path, text: str) -> None:
    rewrite(folder, text)
    with pytest.raises(DocumentError, match=r"object\.json: is not JSON: "):
        read_shape(BakedModel.open(folder))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"class_": "os:system"}, 'class: "os:system" is not "tensors"'),
        ({"options": {"module": "os"}}, "options.module: unknown key (known: file)"),
    ],
)  # fmt: skip
def test_a_manifest_that_names_more_is_refused(folder: Path, changes: Any, message: str) -> None:
    rewrite(folder, **changes)
    with pytest.raises(DocumentError) as error:
        load(folder)
    assert str(error.value) == f"{folder}: {message}"


def test_aliases_of_the_manifest_are_tensors_of_the_object(folder: Path) -> None:
    weights = dataclasses.replace(Manifest.read(folder).weights, aliases={"b": "a"})
    rewrite(folder, '["list",["tensor","a","tensor",false],["tensor","b","tensor",false]]', weights=weights)
    for tier in TIERS:
        one, other = load(folder, [tier]).tensors
        assert one.data_ptr() == other.data_ptr()


def test_other_families_have_no_tensors(tagger: Path) -> None:
    with pytest.raises(LoadError) as error:
        _ = load(tagger / "tagger").tensors
    assert str(error.value) == "tagger: this model of family torch was baked without tensors"


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text() | st.sampled_from(["tensor", "a", "dict", "size", "torch"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=2),
    max_leaves=12,
)


@given(values)
def test_any_shape_is_built_or_refused(value: Any) -> None:
    try:
        SavedObject(Shape(json.loads(json.dumps(value))), {"a": torch.ones(2)}).object()
    except PrebakeError as error:
        assert str(error).startswith(f"{FILE}: ")
