"""A file of tensors is canonical: its bytes follow from names and values, and any reader reads them back."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from prebake.baked import layout
from prebake.baked.header import read_header
from prebake.weights.tensors import DTYPES, map_tensors
from prebake_build.baking.prove import difference_of
from prebake_build.baking.tensor_files import file_size, write_tensors
from prebake_build.files.atomic import write_text


def test_the_file_is_named_sized_and_hashed_as_it_is_on_disk(tmp_path: Path) -> None:
    file = write_tensors(tmp_path / "model.safetensors", {"b": torch.ones(3), "a": torch.zeros(2, 2)})
    data = (tmp_path / "model.safetensors").read_bytes()
    assert (file.path, file.size, file.sha256) == (
        "model.safetensors", len(data), hashlib.sha256(data).hexdigest()
    )  # fmt: skip


@pytest.mark.parametrize("count", [0, 1, 50, 500])
def test_data_starts_on_a_page(tmp_path: Path, count: int) -> None:
    write_tensors(tmp_path / "m", {f"name.{i}": torch.ones(1) for i in range(count)})
    assert read_header(tmp_path / "m").data_start % layout.PAGE == 0


@pytest.mark.parametrize("count", [0, 1, 50, 500])
def test_the_size_is_known_before_it_is_written(tmp_path: Path, count: int) -> None:
    tensors = {f"name.{i}": torch.ones(1).expand(i) for i in range(count)}
    assert file_size(tensors) == write_tensors(tmp_path / "m", tensors).size == (tmp_path / "m").stat().st_size


def test_large_elements_come_first_then_names_in_order(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m", {
        "a8": torch.ones(1, dtype=torch.uint8), "z4": torch.ones(1), "b4": torch.ones(1),
        "c16": torch.ones(1, dtype=torch.bfloat16), "d64": torch.ones(1, dtype=torch.int64),
    })  # fmt: skip
    entries = read_header(tmp_path / "m").entries
    assert sorted(entries, key=lambda name: entries[name].begin) == ["d64", "b4", "z4", "c16", "a8"]


def test_the_order_of_the_mapping_does_not_change_the_bytes(tmp_path: Path) -> None:
    tensors = {"b": torch.ones(3), "a": torch.zeros(2), "c": torch.ones(1, dtype=torch.float64)}
    one = write_tensors(tmp_path / "one", tensors)
    assert write_tensors(tmp_path / "two", dict(reversed(tensors.items()))).sha256 == one.sha256


ODD = {
    "scalar": torch.tensor(7),
    "empty": torch.empty(0, 4),
    "transposed": torch.arange(6.0).view(2, 3).t(),
    "expanded": torch.ones(1).expand(5),
    "strided": torch.arange(10)[::3],
    "complex": torch.tensor([1 + 2j]),
    "conjugated": torch.tensor([1 + 2j]).conj(),
    "negative": torch.tensor([1 + 2j]).imag,
    "parameter": torch.nn.Parameter(torch.ones(2)),
    "한글": torch.tensor([True]),
    'quo"te\\\n': torch.tensor([1]),
}


def test_any_layout_of_a_tensor_is_written_as_its_values(tmp_path: Path) -> None:
    write_tensors(tmp_path / "m.safetensors", ODD)
    for read in (load_file(tmp_path / "m.safetensors"), map_tensors(tmp_path / "m.safetensors")):
        assert read.keys() == ODD.keys()
        assert [name for name in ODD if difference_of(ODD[name].resolve_conj().resolve_neg(), read[name])] == []


@pytest.mark.parametrize("name", sorted(DTYPES))
def test_every_bit_pattern_of_a_dtype_is_kept(tmp_path: Path, name: str) -> None:
    patterns = torch.arange(2**16, dtype=torch.int32).to(torch.uint16)
    bits = patterns.view(torch.uint8) if name != "BOOL" else torch.tensor([0, 1], dtype=torch.uint8)
    tensor = bits.view(DTYPES[name])
    write_tensors(tmp_path / "m", {"t": tensor})
    assert difference_of(tensor, map_tensors(tmp_path / "m")["t"]) is None


dtypes = st.sampled_from([torch.float32, torch.float16, torch.int64, torch.uint8, torch.bool, torch.bfloat16])
shapes = st.lists(st.integers(0, 4), max_size=3)


@given(st.dictionaries(st.text(min_size=1, max_size=8).filter(lambda t: t != "__metadata__" and t.isprintable()),
                       st.tuples(dtypes, shapes, st.integers(0, 2**31)), max_size=6))  # fmt: skip
def test_what_the_reference_implementation_reads_is_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, plan: dict[str, tuple[torch.dtype, list[int], int]]
) -> None:
    path = tmp_path_factory.mktemp("hypothesis") / "m.safetensors"
    tensors = {
        name: torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
        for name, (dtype, shape, seed) in plan.items()
    }
    write_tensors(path, tensors)
    read = load_file(path)
    assert read.keys() == tensors.keys()
    assert not [name for name in tensors if difference_of(tensors[name], read[name])]


def test_an_existing_file_is_never_written_over(tmp_path: Path) -> None:
    (tmp_path / "m").write_text("mine")
    with pytest.raises(FileExistsError):
        write_tensors(tmp_path / "m", {})
    with pytest.raises(FileExistsError):
        write_text(tmp_path / "m", "", new=True)
    assert (tmp_path / "m").read_text() == "mine"
