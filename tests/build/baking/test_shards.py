"""Weights are split in their canonical order into shards of the size that is asked for, and not without need."""

from __future__ import annotations

import json

import pytest
import torch

from prebake_build.baking import shards
from prebake_build.baking.shards import split


def named(**sizes: int) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(size, dtype=torch.uint8) for name, size in sizes.items()}


def names(files: dict[str, dict[str, shards.Tensors]]) -> dict[str, list[str]]:
    return {file: list(tensors) for found in files.values() for file, tensors in found.items()}


def test_what_fits_stays_in_one_file_without_an_index() -> None:
    tensors = named(b=64, a=64)
    files, indexes = split({"model.safetensors": tensors}, 128)
    assert files == {"model.safetensors": {"model.safetensors": tensors}}
    assert indexes == {}


def test_shards_are_filled_in_the_canonical_order_and_named_as_the_hub_does() -> None:
    files, indexes = split({"unet/model.safetensors": named(c=64, odd=3, a=64, b=128)}, 128)
    assert names(files) == {
        "unet/model-00001-of-00003.safetensors": ["a"],
        "unet/model-00002-of-00003.safetensors": ["b"],
        "unet/model-00003-of-00003.safetensors": ["c", "odd"],
    }
    assert list(indexes) == ["unet/model.safetensors.index.json"]
    assert json.loads(indexes["unet/model.safetensors.index.json"]) == {
        "metadata": {"total_size": 259},
        "weight_map": {
            "a": "model-00001-of-00003.safetensors", "b": "model-00002-of-00003.safetensors",
            "c": "model-00003-of-00003.safetensors", "odd": "model-00003-of-00003.safetensors",
        },
    }  # fmt: skip


def test_a_tensor_above_the_limit_has_a_shard_of_its_own() -> None:
    files, _ = split({"m.safetensors": named(a=64, b=1024, c=64)}, 100)
    assert list(names(files).values()) == [["a"], ["b"], ["c"]]
    files, indexes = split({"m.safetensors": named(b=1024)}, 100)
    assert (names(files), indexes) == ({"m.safetensors": ["b"]}, {})


def test_files_that_a_library_reads_by_name_stay_whole() -> None:
    parts = {"model.safetensors": named(a=64, b=64), "1_Dense/model.safetensors": named(c=64, d=64)}
    files, indexes = split(parts, 64, whole=["1_Dense/model.safetensors"])
    assert list(names(files)) == [
        "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors", "1_Dense/model.safetensors"
    ]  # fmt: skip
    assert list(indexes) == ["model.safetensors.index.json"]


def test_there_are_never_more_shards_than_layers_for_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "MOST", 3)
    files, _ = split({"m.safetensors": named(**{f"t{number:02}": 64 for number in range(12)})}, 64)
    found = names(files)
    assert len(found) <= 3
    assert sorted(name for tensors in found.values() for name in tensors) == [f"t{number:02}" for number in range(12)]
