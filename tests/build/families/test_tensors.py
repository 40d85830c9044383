"""Files of tensors are described completely, baked and given back, or refused with the place in the object."""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch import nn

from helpers.baking import job, recipe, refused
from helpers.networks import Tagger
from prebake import load
from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError, SourceError
from prebake.modules.saved_object import SavedObject, Shape
from prebake.tiers.loader import TIERS, Tier
from prebake_build.baking.worker import run
from prebake_build.families.saved_objects import describe, difference

CANNOT = (
    "which a baked file of tensors cannot hold (it holds tensors, numbers, strings, bytes, None, dtypes, devices and "
    "sizes, in dicts, lists, tuples and sets): save a file without it"
)


def baked(folder: Path, content: Any, **changes: Any) -> Path:
    """The folder of a model baked from a file with this content."""
    checkpoint = folder / "c"
    checkpoint.mkdir()
    torch.save(content, checkpoint / "w.pth")
    run(job(checkpoint, folder / "m", family="tensors", class_="", **changes))
    return folder / "m"


def everything() -> dict[Any, Any]:
    shared = torch.arange(6.0).reshape(2, 3)
    return {
        "epoch": 3, "loss": 0.1, "best": -math.inf, "seen": 1 << 70, "name": "é", "none": None, "flag": True,
        "nan": math.nan, "z": 1 - 2j, "raw": b"\0\xff", 7: "a number as key", ("a", 1): [1, (2, [3])],
        "state_dict": OrderedDict(a=shared, b=shared), "tied": shared, "size": torch.Size([2, 3]),
        "dtype": torch.bfloat16, "device": torch.device("cuda:1"), "counts": Counter("aab"), "set": {1, 2},
        "parameter": nn.Parameter(torch.ones(2)), "frozen": nn.Parameter(torch.ones(2), requires_grad=False),
        "wants": torch.ones(3, requires_grad=True),
        "channels": torch.arange(120.0).reshape(2, 3, 4, 5).to(memory_format=torch.channels_last),
        "turned": torch.arange(6).reshape(2, 3).t(), "strided": torch.arange(8)[::2], "one": torch.tensor(5),
        "empty": torch.empty(0, 3), "half": torch.ones(2, dtype=torch.float16), "bools": torch.tensor([True, False]),
        "a.b": torch.ones(1), "a": {"b": torch.zeros(1)},
    }  # fmt: skip


@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_gives_what_torch_load_gives(tmp_path: Path, tier: Tier) -> None:
    folder = baked(tmp_path, everything())
    expected = torch.load(tmp_path / "c" / "w.pth", weights_only=True)
    loaded = load(folder, [tier])
    found = loaded.tensors
    assert loaded.tier == tier
    assert difference(expected, found) is None
    assert [type(value) for value in expected.values()] == [type(value) for value in found.values()]
    assert math.isnan(found["nan"])
    assert found["channels"].stride() == expected["channels"].stride()
    assert found["turned"].stride() == expected["turned"].stride()


def test_shared_tensors_stay_shared_and_are_stored_once(tmp_path: Path) -> None:
    folder = baked(tmp_path, everything())
    found = load(folder).tensors
    assert found["tied"].data_ptr() == found["state_dict"]["a"].data_ptr() == found["state_dict"]["b"].data_ptr()
    weights = Manifest.read(folder).weights
    assert (weights.aliases, weights.tensors) == ({}, 13)


def test_a_state_dict_keeps_the_versions_of_its_modules(tmp_path: Path) -> None:
    found = load(baked(tmp_path, Tagger().state_dict())).tensors
    assert type(found) is OrderedDict
    assert found._metadata["norm"] == {"version": 2}  # type: ignore[attr-defined]
    network = Tagger()
    network.load_state_dict(found)
    assert network.out.weight.shape == (11, 6)


def test_its_names_in_the_file_are_those_of_the_state_dict(tmp_path: Path) -> None:
    folder = baked(tmp_path, {"epoch": 1, "model": nn.Linear(3, 2).state_dict()})
    assert load_file(folder / "model.safetensors").keys() == {"model.weight", "model.bias"}


def test_a_safetensors_file_gives_what_its_own_loader_gives(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    save_file({"b": torch.ones(2), "a": torch.zeros(3)}, tmp_path / "c" / "w.safetensors")
    run(job(tmp_path / "c", tmp_path / "m", family="tensors", class_=""))
    assert difference(dict(sorted(load_file(tmp_path / "c" / "w.safetensors").items())),
                      dict(sorted(load(tmp_path / "m").tensors.items()))) is None  # fmt: skip


def test_a_tensor_alone_is_an_object_too(tmp_path: Path) -> None:
    assert load(baked(tmp_path, torch.arange(3))).tensors.tolist() == [0, 1, 2]


def test_it_needs_no_permission_and_no_constructor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = baked(tmp_path, {"a": torch.ones(1)})
    monkeypatch.delenv("PREBAKE_ALLOW")
    loaded = load(folder, ["mapped"])
    assert (type(loaded.model), loaded.model.training, list(loaded.parts)) == (SavedObject, False, ["tensors"])


def test_each_object_has_containers_of_its_own(tmp_path: Path) -> None:
    module = load(baked(tmp_path, {"a": torch.ones(1)})).model
    assert isinstance(module, SavedObject)
    one, other = module.object(), module.object()
    one.pop("a")
    assert other["a"].tolist() == [1.0]


def test_baking_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        baked(tmp_path / name, everything())
    files = [Manifest.read(tmp_path / name / "m").set_digest for name in ("one", "two")]
    assert files[0] == files[1]


def test_a_dtype_changes_floating_point_tensors_alone(tmp_path: Path) -> None:
    found = load(baked(tmp_path, {"a": torch.ones(1), "b": torch.ones(1, dtype=torch.int64)}, dtype="float16")).tensors
    assert (found["a"].dtype, found["b"].dtype) == (torch.float16, torch.int64)


# --- what is refused ---------------------------------------------------------------------------------------------


def shared_lists(levels: int) -> list[Any]:
    content: list[Any] = [0]
    for _ in range(levels):
        content = [content, content]
    return content


def deep(levels: int) -> list[Any]:
    content: list[Any] = []
    for _ in range(levels):
        content = [content]
    return content


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"a": {"b": torch.ones(2).to_sparse()}}, "models.m: a.b is torch.sparse_coo, which safetensors cannot hold"),
        ({"a": torch.ones(2, dtype=torch.complex128)},
         "models.m: a is torch.complex128, which safetensors cannot hold"),
        (deep(102), f"models.m: w.pth: 0.0.0.0.0 is nested more than 100 levels deep, {CANNOT}"),
    ],
    ids=["sparse", "complex128", "deep"],
)  # fmt: skip
def test_what_cannot_be_held_is_refused_with_its_place(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(SourceError) as error:
        baked(tmp_path, content)
    assert str(error.value) == message


def test_shared_containers_do_not_grow_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prebake_build.families.saved_objects.MOST", 5_000)
    with pytest.raises(SourceError) as error:
        baked(tmp_path, shared_lists(24))
    assert str(error.value) == "models.m: w.pth: holds more than 5,000 values"


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ({"x": [1, range(3)]}, "x.1 is a builtins.range"),
        ({"x": "\ud800"}, "x is a string that is not Unicode"),
        (range(3), "the file's object is a builtins.range"),
        ({"x": nn.UninitializedParameter()}, "x is a UninitializedParameter"),
    ],
    ids=["range", "surrogate", "object", "lazy"],
)  # fmt: skip
def test_other_kinds_are_named(content: Any, what: str) -> None:
    with pytest.raises(SourceError) as error:
        describe(content, "models.m: w.pth")
    assert str(error.value) == f"models.m: w.pth: {what}, {CANNOT}"


def test_several_files_want_a_choice(tmp_path: Path) -> None:
    for name in ("a.pth", "b.pth"):
        torch.save({"w": torch.ones(1)}, tmp_path / name)
    assert refused(ConfigError, recipe("tensors"), tmp_path) == (
        'models.m.source: expected one file of weights (.safetensors, .bin, .pt, .pth, .ckpt), found "a.pth", '
        '"b.pth": add file = "…" to choose'
    )
    run(job(tmp_path, tmp_path / "m", family="tensors", class_="", options={"file": "b.pth"}))
    assert load(tmp_path / "m").tensors["w"].tolist() == [1.0]


# --- any object --------------------------------------------------------------------------------------------------

scalars = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary())
tensors = st.lists(st.integers(0, 3), max_size=3).map(lambda shape: torch.zeros(shape))
objects = st.recursive(
    scalars | tensors,
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=20,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(objects)
def test_any_object_is_described_and_read_back_the_same(value: Any) -> None:
    described = describe(value, "where")
    assert difference(value, SavedObject(Shape(json.loads(described.text)), described.tensors).object()) is None
