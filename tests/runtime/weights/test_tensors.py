"""A file of weights as tensors: the same as safetensors' own, mapped or read; never a signal."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
import safetensors
import safetensors.torch
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.runtime_fakes import entry, python_says, safetensors_bytes
from prebake.baked.header import read_header
from prebake.errors import TensorFileError
from prebake.weights.tensors import DTYPES, Opener, map_tensors, read_tensors

OPENERS = pytest.mark.parametrize("opener", [map_tensors, read_tensors], ids=["mapped", "read"])

SHAPES = [(), (3,), (2, 3), (0,), (4, 0, 2), (1, 1)]
EVERY_TYPE = {f"{name}.{n}": torch.empty(shape, dtype=torch.uint8).random_(0, 2).to(dtype)
              for name, dtype in DTYPES.items() for n, shape in enumerate(SHAPES)}  # fmt: skip


def bits(tensor: torch.Tensor) -> bytes:
    storage = tensor.contiguous().clone().untyped_storage()
    return bytes(storage.tolist())  # type: ignore[no-untyped-call]


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(7)}, path)
    return path


@OPENERS
def test_every_type_and_shape_is_what_safetensors_itself_reads(tmp_path: Path, opener: Opener) -> None:
    path = tmp_path / "model.safetensors"
    safetensors.torch.save_file(EVERY_TYPE, path)
    expected, found = safetensors.torch.load_file(path), opener(path)
    assert found.keys() == expected.keys() == EVERY_TYPE.keys()
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].shape) == (tensor.dtype, tensor.shape)
        assert found[name].is_contiguous()
        assert bits(found[name]) == bits(tensor), name


TENSORS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=8).filter(
        lambda name: name != "__metadata__"
    ),
    st.tuples(st.sampled_from(sorted(DTYPES)), st.lists(st.integers(0, 3), max_size=4)),
    max_size=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(
    TENSORS, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), st.just("x"), max_size=2)
)
def test_whatever_safetensors_writes_is_accepted(
    tmp_path: Path, declared: dict[str, tuple[str, list[int]]], metadata: dict[str, str]
) -> None:
    path = tmp_path / "model.safetensors"
    tensors = {name: torch.ones(shape).to(DTYPES[dtype]) for name, (dtype, shape) in declared.items()}
    safetensors.torch.save_file(tensors, path, metadata=metadata or None)  # an empty one it writes as no JSON
    for opener in (map_tensors, read_tensors):
        found = opener(path)
        assert {name: (tensor.dtype, tensor.shape) for name, tensor in found.items()} == {
            name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()
        }


def test_what_safetensors_refuses_is_refused(tmp_path: Path) -> None:
    """The reference implementation's verdict on each kind of damage is ours."""
    path = tmp_path / "model.safetensors"
    headers: list[Any] = [
        {"a": entry("F32", [2], 0, 4)}, {"a": entry("F32", [1], 4, 8)}, {"a": entry("NEW", [1], 0, 8)},
        {"a": entry("F32", [1], 0, 4), "b": entry("F32", [1], 0, 4)}, {"a": {}}, [], "x", 1,
        {"a": entry("F32", [-2], 0, 8)}, {"a": entry("F32", [2**62, 2**62], 0, 8)},
    ]  # fmt: skip
    for header in headers:
        path.write_bytes(safetensors_bytes(header, bytes(8)))
        with pytest.raises(safetensors.SafetensorError):
            safetensors.torch.load_file(path)
        with pytest.raises(TensorFileError):
            map_tensors(path)


@OPENERS
def test_all_tensors_are_views_of_one_storage(weights: Path, opener: Opener) -> None:
    tensors = opener(weights)
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors.values()}) == 1


def test_writing_to_a_mapped_tensor_never_reaches_the_file(weights: Path) -> None:
    before = hashlib.sha256(weights.read_bytes()).hexdigest()
    weights.chmod(0o444)
    first, second = map_tensors(weights)["a"], map_tensors(weights)["a"]
    first.fill_(100)
    assert torch.equal(second, torch.arange(6.0).reshape(2, 3))
    assert torch.equal(map_tensors(weights)["a"], torch.arange(6.0).reshape(2, 3))
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == before


def test_a_mapping_survives_the_removal_of_its_file(weights: Path) -> None:
    tensors = map_tensors(weights)
    weights.unlink()
    assert tensors["a"].sum() == 15


def test_a_mapping_survives_the_replacement_of_its_file(weights: Path) -> None:
    """How a new version arrives: another file, renamed over the old one."""
    tensors = map_tensors(weights)
    new = weights.with_name("new")
    safetensors.torch.save_file({"a": torch.zeros(2, 3), "b": torch.tensor(0)}, new)
    new.replace(weights)
    assert tensors["a"].sum() == 15
    assert map_tensors(weights)["a"].sum() == 0


@OPENERS
def test_a_type_this_torch_lacks_is_refused(weights: Path, opener: Opener, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(DTYPES, "I64")
    with pytest.raises(TensorFileError) as error:
        opener(weights)
    assert str(error.value) == f"{weights}: this torch ({torch.__version__}) has no type I64"


def test_a_tensor_off_its_alignment_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors_bytes({"a": entry("U8", [1], 0, 1), "b": entry("F32", [1], 1, 5)}, bytes(5)))
    for opener in (map_tensors, read_tensors):
        with pytest.raises(TensorFileError, match=r": b is not aligned to its 4 bytes per element$"):
            opener(path)


def test_a_file_that_cannot_be_mapped_can_still_be_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise RuntimeError("unable to mmap 136 bytes: No such device (19)")

    monkeypatch.setattr(torch.UntypedStorage, "from_file", refuse)
    with pytest.raises(TensorFileError) as error:
        map_tensors(weights)
    assert str(error.value) == f"{weights}: cannot be mapped: unable to mmap 136 bytes: No such device (19)"
    assert read_tensors(weights)["a"].sum() == 15


def test_a_file_that_shrinks_after_the_check_is_not_mapped(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    header = read_header(weights)
    with weights.open("r+b") as file:
        file.truncate(header.data_start)
    monkeypatch.setattr("prebake.weights.tensors.read_header", lambda path: header)
    with pytest.raises(TensorFileError, match=r": cannot be mapped: "):
        map_tensors(weights)
    with pytest.raises(TensorFileError, match=r": ended 32 bytes early while it was read$"):
        read_tensors(weights)


def test_damaged_files_end_in_an_error_and_never_in_a_signal(tmp_path: Path) -> None:
    """In a process of its own: touching a page beyond the end of a file kills it with SIGBUS, uncatchably."""
    whole = tmp_path / "model.safetensors"
    safetensors.torch.save_file({"a": torch.ones(1 << 20), "b": torch.ones(3)}, whole)
    size = whole.stat().st_size
    for number, end in enumerate((0, 7, 100, size // 2, size - 1, size + 1, size + 4096)):
        copy = tmp_path / f"{number}.safetensors"
        shutil.copyfile(whole, copy)
        with copy.open("r+b") as file:
            file.truncate(end)
    (tmp_path / "garbage.safetensors").write_bytes(b"\x89PNG" * 5000)
    (tmp_path / "zeros.safetensors").write_bytes(bytes(10_000))
    said = python_says(
        "import pathlib, sys\n"
        "from prebake.errors import TensorFileError\n"
        "from prebake.weights.tensors import map_tensors, read_tensors\n"
        "for path in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    for opener in (map_tensors, read_tensors):\n"
        "        try: print(path.stem, sum(float(t.sum()) for t in opener(path).values()))\n"
        "        except TensorFileError: print(path.stem, 'refused')",
        tmp_path,
    )
    names = [*map(str, range(7)), "garbage", "zeros"]
    assert said.splitlines() == [*(f"{n} refused" for n in names[:8] for _ in "12"), *["model 1048579.0"] * 2,
                                 *["zeros refused"] * 2]  # fmt: skip


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.data())
def test_a_changed_header_gives_tensors_inside_the_file_or_an_error(tmp_path: Path, data: st.DataObject) -> None:
    path = tmp_path / "model.safetensors"
    shape = data.draw(st.lists(st.sampled_from([0, 1, 2, 3, 2**31, 2**62]), max_size=5))
    dtype = data.draw(st.sampled_from(sorted(DTYPES)))
    begin, end = data.draw(st.integers(0, 16)), data.draw(st.integers(0, 16))
    path.write_bytes(safetensors_bytes({"a": entry(dtype, shape, begin, end)}, bytes(data.draw(st.integers(0, 16)))))
    for opener in (map_tensors, read_tensors):
        try:
            tensor = opener(path)["a"]
        except TensorFileError:
            continue
        assert list(tensor.shape) == shape
        assert len(bits(tensor)) == end - begin
