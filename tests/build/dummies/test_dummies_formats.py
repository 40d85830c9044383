"""The random streams never change, and the files around them are what torch and safetensors read and write."""

from __future__ import annotations

import hashlib
import math
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from prebake_build.dummies import archives
from prebake_build.dummies.weights import CHUNK, Fill, Tensor, constant, random

STREAM = "c4e542d6f5207f39c11e35ebf8a07b1d42eb36183a42d0a04fa291d3150aefe2"


class TestWeights:
    def test_the_streams_never_change(self) -> None:
        # Another digest means other bytes for every lock of dummies: raise GENERATOR.
        values = random(7, "a.weight", (1000,), Fill(1.0, 0.25)).array()
        assert hashlib.sha256(values.tobytes()).hexdigest() == STREAM

    def test_a_tensor_depends_on_seed_and_name_alone(self) -> None:
        shape = (3, CHUNK // 2 + 1)
        first = random(0, "a", shape, Fill(0.0, 1.0)).array()
        assert np.array_equal(first, random(0, "b", shape, Fill(0.0, 1.0), stream="a").array())
        assert not np.array_equal(first, random(1, "a", shape, Fill(0.0, 1.0)).array())
        assert not np.array_equal(first, random(0, "b", shape, Fill(0.0, 1.0)).array())
        assert np.array_equal(first.ravel()[:5], random(0, "a", (5,), Fill(0.0, 1.0)).array())

    def test_values_fill_their_range_evenly(self) -> None:
        values = random(0, "a", (200_000,), Fill(1.0, 0.5)).array()
        assert 0.5 <= values.min() < 0.501 < 1.499 < values.max() <= 1.5
        assert abs(values.mean() - 1.0) < 0.002
        assert abs(values.std() - 0.5 / math.sqrt(3)) < 0.002


TENSORS = [
    random(0, "a", (3, 5), Fill(0.0, 1.0)),
    Tensor(name="a.tied", dtype="float32", shape=(3, 5), chunks=random(0, "a", (3, 5), Fill(0.0, 1.0)).chunks,
           same_storage_as="a"),
    random(0, "half", (7,), Fill(0.0, 1.0), dtype="float16"),
    constant("scalar", np.array(3, dtype=np.int64)),
    constant("empty", np.empty((0, 4), dtype=np.float32)),
]  # fmt: skip


class TestArchives:
    @pytest.mark.parametrize("writer", [archives.write_torch_zip, archives.write_torch_legacy])
    @pytest.mark.parametrize("location", ["cpu", "cuda:0"])
    def test_torch_reads_them_without_executing_anything(self, tmp_path: Path, writer: Any, location: str) -> None:
        path = tmp_path / "weights.pth"
        made: list[int] = []
        writer(path, TENSORS, {"": {"version": 1}}, made.append, location)
        state = torch.load(path, weights_only=True, map_location="cpu")
        assert list(state) == [tensor.name for tensor in TENSORS]
        for tensor in TENSORS:
            assert np.array_equal(state[tensor.name].numpy(), tensor.array())
            assert state[tensor.name].is_contiguous()
        assert state["a"].data_ptr() == state["a.tied"].data_ptr()
        assert state._metadata == {"": {"version": 1}}
        assert sum(made) == sum(tensor.nbytes for tensor in TENSORS if not tensor.same_storage_as)

    def test_a_torch_zip_can_be_mapped(self, tmp_path: Path) -> None:
        path = tmp_path / "weights.bin"
        archives.write_torch_zip(path, TENSORS, {}, int)
        state = torch.load(path, weights_only=True, mmap=True)
        assert np.array_equal(state["half"].numpy(), TENSORS[2].array())
        with zipfile.ZipFile(path) as archive:
            assert archive.testzip() is None
            assert {_data_offset(path, info) % archives.ALIGNMENT for info in archive.infolist()} == {0}

    def test_a_safetensors_file_is_the_librarys_own_bytes(self, tmp_path: Path) -> None:
        from safetensors.numpy import save

        tensors = [tensor for tensor in TENSORS if not tensor.same_storage_as]
        path = tmp_path / "model.safetensors"
        archives.write_safetensors(path, tensors, int)
        assert path.read_bytes() == save({tensor.name: tensor.array() for tensor in tensors}, {"format": "pt"})


def _data_offset(path: Path, info: zipfile.ZipInfo) -> int:
    with path.open("rb") as file:
        file.seek(info.header_offset)
        header = file.read(30)
    return info.header_offset + 30 + int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
