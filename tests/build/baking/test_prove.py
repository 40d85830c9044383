"""The proof tells every difference, down to the bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from helpers.baking import flip_byte, torch_job
from helpers.networks import Tagger
from prebake.errors import IntegrityError
from prebake.weights.tensors import map_tensors
from prebake_build.baking import tensor_files
from prebake_build.baking.prove import difference_of, prove
from prebake_build.baking.tensor_files import Verified, write_tensors
from prebake_build.baking.worker import run
from prebake_build.files.pages import Mappings


def floats(*bits: int) -> torch.Tensor:
    return torch.tensor(bits, dtype=torch.int32).view(torch.float32)


QUIET_NAN, OTHER_NAN = 0x7FC00000, 0x7FC00001


@pytest.mark.parametrize(
    ("expected", "found", "difference"),
    [
        (torch.ones(2), torch.ones(2), None),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), "expected torch.float32, found torch.float64"),
        (torch.ones(2), torch.ones(2, 1), "expected shape (2,), found (2, 1)"),
        (torch.ones(1000, 2), torch.zeros(1000, 2), "2,000 of 2,000 values differ"),
        (torch.tensor([1.0, 2, 3]), torch.tensor([1.0, 0, 3]), "1 of 3 values differ"),
        (torch.tensor([0.0]), torch.tensor([-0.0]), "1 of 1 values differ"),
        (floats(QUIET_NAN), floats(QUIET_NAN), None),
        (floats(QUIET_NAN), floats(OTHER_NAN), "1 of 1 values differ"),
        (torch.tensor(3), torch.tensor(3), None),
        (torch.tensor(3), torch.tensor(4), "1 of 1 values differ"),
        (torch.empty(0, 3), torch.empty(0, 3), None),
        (torch.tensor([True, False]), torch.tensor([True, True]), "1 of 2 values differ"),
        (torch.tensor([1 + 2j, 3j]), torch.tensor([1 + 2j, 4j]), "1 of 2 values differ"),
        (torch.arange(4.0).view(2, 2).t(), torch.arange(4.0).view(2, 2).t().contiguous(), None),
        (torch.ones(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.bfloat16), "2 of 2 values differ"),
    ],
)
def test_a_difference_is_said(expected: torch.Tensor, found: torch.Tensor, difference: str | None) -> None:
    assert difference_of(expected, found) == difference


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20), st.data())
def test_any_single_changed_bit_is_one_value_that_differs(bits: list[int], data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(bits) - 1))
    bit = data.draw(st.integers(0, 30))
    changed = list(bits)
    changed[place] ^= 1 << bit
    assert difference_of(floats(*bits), floats(*bits)) is None
    assert difference_of(floats(*bits), floats(*changed)) == f"1 of {len(bits)} values differ"


@pytest.fixture
def baked(tmp_path: Path) -> tuple[Tagger, Path]:
    torch.manual_seed(3)
    module = Tagger().eval()
    (tmp_path / "checkpoint").mkdir()
    torch.save(module.state_dict(), tmp_path / "checkpoint" / "weights.pth")
    folder = tmp_path / "tagger"
    run(torch_job(tmp_path / "checkpoint", folder, "helpers.networks:tagger"))
    return module, folder


def test_an_honest_copy_is_proven(baked: tuple[Tagger, Path]) -> None:
    assert isinstance(prove(*baked, allow=("helpers.networks",)), Tagger)


@pytest.mark.parametrize("file", ["model.safetensors", "buffers.safetensors"])
def test_one_flipped_bit_in_the_last_value_is_found(baked: tuple[Tagger, Path], file: str) -> None:
    module, folder = baked
    flip_byte(folder / file)
    with pytest.raises(IntegrityError, match=r"^tagger: mapped, the baked model differs from the ordinary load of its "
                                             r"checkpoint:\n  [\w.]+: 1 of [\d,]+ values differ$"):  # fmt: skip
        prove(module, folder, allow=("helpers.networks",))


def test_of_many_differences_ten_are_listed(baked: tuple[Tagger, Path]) -> None:
    _, folder = baked
    torch.manual_seed(4)
    with pytest.raises(IntegrityError) as caught:
        prove(Tagger(), folder, allow=("helpers.networks",))
    lines = str(caught.value).splitlines()
    assert len(lines) == 12
    assert lines[1].startswith("  embedding.weight: ")
    assert lines[-1].startswith("  and ")


def test_a_converter_that_writes_other_bytes_than_it_was_given_is_caught(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = tensor_files.write_tensors

    def corrupt(path: Path, tensors: dict[str, torch.Tensor], *others: Any, **named: Any) -> object:
        file = honest(path, tensors, *others, **named)
        flip_byte(path)
        return file

    monkeypatch.setattr(tensor_files, "write_tensors", corrupt)
    (tmp_path / "checkpoint").mkdir()
    torch.save(Tagger().state_dict(), tmp_path / "checkpoint" / "weights.pth")
    with pytest.raises(IntegrityError, match="mapped, the baked model differs"):
        run(torch_job(tmp_path / "checkpoint", tmp_path / "tagger", "helpers.networks:tagger"))


# --- what the writer has compared already ------------------------------------------------------------------------


@pytest.fixture
def written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[dict[str, torch.Tensor], Path, Verified]:
    """Tensors, the file with them, and what its writer compared."""
    monkeypatch.setattr(tensor_files, "LARGE", 0)
    tensors = {"a": torch.arange(4096.0), "b": torch.ones(64, 64)}
    verified = Verified()
    write_tensors(tmp_path / "m", tensors, verified)
    return tensors, tmp_path / "m", verified


def test_views_of_the_written_file_need_no_second_reading(
    written: tuple[dict[str, torch.Tensor], Path, Verified],
) -> None:
    tensors, path, verified = written
    mapped = map_tensors(path)
    assert [verified.holds(tensors[name], mapped[name], Mappings()) for name in tensors] == [True, True]
    assert not verified.holds(tensors["a"], mapped["b"], Mappings())
    assert not verified.holds(tensors["b"], mapped["b"].view(-1), Mappings())
    assert not verified.holds(tensors["b"], mapped["b"].t(), Mappings())
    assert not verified.holds(tensors["a"], tensors["a"].clone(), Mappings())
    assert not verified.holds(tensors["a"].clone(), mapped["a"], Mappings())


def test_a_file_that_changed_after_it_was_written_is_read_again(
    written: tuple[dict[str, torch.Tensor], Path, Verified],
) -> None:
    tensors, path, verified = written
    flip_byte(path)
    assert not verified.holds(tensors["a"], map_tensors(path)["a"], Mappings())


def test_a_view_that_was_changed_in_memory_is_read_again(
    written: tuple[dict[str, torch.Tensor], Path, Verified],
) -> None:
    tensors, path, verified = written
    mapped = map_tensors(path)
    mapped["b"][3, 5] = 7.0
    assert not verified.holds(tensors["b"], mapped["b"], Mappings())
    assert difference_of(tensors["b"], mapped["b"]) == "1 of 4,096 values differ"


def test_small_files_are_always_read_again(tmp_path: Path) -> None:
    verified, tensors = Verified(), {"a": torch.ones(64)}
    write_tensors(tmp_path / "m", tensors, verified)
    assert not verified.holds(tensors["a"], map_tensors(tmp_path / "m")["a"], Mappings())


def test_bytes_that_do_not_read_back_as_they_were_written_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tensor_files, "are_equal", lambda one, other, size: False)
    with pytest.raises(IntegrityError) as caught:
        write_tensors(tmp_path / "m", {"a": torch.ones(3)})
    assert str(caught.value) == (f"{tmp_path}/m: reads back other bytes than were written to it: is the disk damaged?")
