"""A checkpoint file gives names and tensors, or an error that says what it is instead."""

from __future__ import annotations

import os
import pickle
from argparse import Namespace
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file, save_model
from torch import nn

from helpers.baking import Evil
from helpers.networks import Tagger
from prebake.errors import SourceError, TensorFileError
from prebake.modules.assembly import identity_of
from prebake_build.baking.prove import difference_of
from prebake_build.families.state_dicts import cast, completed, read_state_dict

WHERE = "models.m"


def message(path: Path) -> str:
    with pytest.raises(SourceError) as caught:
        read_state_dict(path, WHERE)
    return str(caught.value)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_both_formats_of_torch_save_are_read(tmp_path: Path, suffix: str, zipped: bool) -> None:
    path = tmp_path / f"w{suffix}"
    state = Tagger().state_dict()
    torch.save(state, path, _use_new_zipfile_serialization=zipped)
    read = read_state_dict(path, WHERE)
    assert read.keys() == state.keys()
    assert not [name for name in state if difference_of(state[name], read[name])]


def test_ties_and_the_versions_of_the_modules_are_kept(tmp_path: Path) -> None:
    torch.save(Tagger().state_dict(), tmp_path / "w.pth")
    for read in (state := read_state_dict(tmp_path / "w.pth", WHERE), cast(state, torch.float64),
                 completed(state, Tagger())):  # fmt: skip
        assert identity_of(read["out.weight"]) == identity_of(read["embedding.weight"])
        assert read._metadata["norm"] == {"version": 2}  # type: ignore[attr-defined]


def test_casting_leaves_whole_numbers_alone() -> None:
    found = cast({"f": torch.ones(2), "i": torch.ones(2, dtype=torch.int64)}, torch.float16)
    assert {name: tensor.dtype for name, tensor in found.items()} == {"f": torch.float16, "i": torch.int64}


def test_names_that_safetensors_own_writer_dropped_are_completed(tmp_path: Path) -> None:
    module = Tagger()
    save_model(module, str(tmp_path / "w.safetensors"))
    read = read_state_dict(tmp_path / "w.safetensors", WHERE)
    assert module.state_dict().keys() - read.keys()
    full = completed(read, Tagger())
    assert full.keys() == module.state_dict().keys()
    Tagger().load_state_dict(full)


def test_a_name_that_nothing_there_is_tied_to_is_not_made_up() -> None:
    assert completed({}, nn.Linear(2, 2)) == {}


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_none(tmp_path: Path, zipped: bool) -> None:
    torch.save({"w": torch.ones(1), "x": Evil(tmp_path / "proof")}, tmp_path / "w.pth",
               _use_new_zipfile_serialization=zipped)  # fmt: skip
    assert message(tmp_path / "w.pth") == (
        "models.m: w.pth: refused: its pickle wants to construct posix.system, and loading that would run code from "
        "the file: only tensors and containers of tensors are loaded. Ask its author for safetensors, or convert it "
        "yourself if you trust it"
    )
    assert not (tmp_path / "proof").exists()


def test_the_proof_of_these_tests_does_appear_without_protection(tmp_path: Path) -> None:
    torch.save({"x": Evil(tmp_path / "proof")}, tmp_path / "w.pth")
    torch.load(tmp_path / "w.pth", weights_only=False)
    assert (tmp_path / "proof").exists()


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_bare_pickle_of_any_protocol_runs_nothing(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "w.pth").write_bytes(pickle.dumps({"x": Evil(tmp_path / "proof")}, protocol=protocol))
    assert message(tmp_path / "w.pth").startswith("models.m: w.pth: ")
    assert not (tmp_path / "proof").exists()


def test_no_message_repeats_torchs_advice_to_switch_the_protection_off(tmp_path: Path) -> None:
    for number, content in enumerate((Evil(tmp_path / "proof"), Namespace(lr=1), nn.Linear(1, 1))):
        torch.save({"x": content}, tmp_path / f"{number}.pth")
        assert "weights_only" not in message(tmp_path / f"{number}.pth")


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (Namespace(lr=1), "argparse.Namespace"),
        (nn.Linear(1, 1), "torch.nn.modules.linear.Linear"),
    ],
    ids=["training arguments", "a whole module"],
)
def test_what_a_pickle_holds_beside_tensors_is_named(tmp_path: Path, content: Any, what: str) -> None:
    torch.save({"w": torch.ones(1), "x": content}, tmp_path / "w.pth")
    assert f"its pickle wants to construct {what}, " in message(tmp_path / "w.pth")


@pytest.mark.parametrize(
    "content",
    [[torch.ones(1)], torch.ones(1), {1: torch.ones(1)}, {"w": 3}, {"w": {}}],
    ids=["list", "tensor", "numbered", "numbers", "empty"],
)
def test_what_is_no_state_dict_is_said(tmp_path: Path, content: Any) -> None:
    torch.save(content, tmp_path / "w.pth")
    assert (
        message(tmp_path / "w.pth") == "models.m: w.pth does not contain a state dict (expected names and tensors only)"
    )


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (b"", "models.m: w.pth is not a readable checkpoint: EOFError"),
        (b"<html>",
         "models.m: w.pth: cannot be loaded without running code from the file: Unsupported operand 60"),
        (b"version https://git-lfs.github.com/spec/v1\n",
         "models.m: w.pth: cannot be loaded without running code from the file: Unsupported operand 118"),
        (b"PK\3\4" + b"\0" * 100, None),
    ],
    ids=["empty", "a web page", "a pointer of git-lfs", "half a zip"],
)  # fmt: skip
def test_what_is_no_checkpoint_is_said(tmp_path: Path, data: bytes, expected: str | None) -> None:
    (tmp_path / "w.pth").write_bytes(data)
    found = message(tmp_path / "w.pth")
    assert found == expected or (
        expected is None and found.startswith("models.m: w.pth is not a readable checkpoint: ")
    )


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_checkpoint_is_said(tmp_path: Path, zipped: bool, share: float) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.ones(5000)}, path, _use_new_zipfile_serialization=zipped)
    os.truncate(path, int(path.stat().st_size * share))
    assert message(path).startswith("models.m: w.pth")


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_gives_anything_but_our_own_error(tmp_path: Path, zipped: bool, data: st.DataObject) -> None:
    path = tmp_path / "w.pth"
    torch.save({"w": torch.ones(5), "b": torch.ones(2)}, path, _use_new_zipfile_serialization=zipped)
    content = bytearray(path.read_bytes())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    with suppress(SourceError):
        read_state_dict(path, WHERE)


def test_a_truncated_safetensors_file_is_never_mapped(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"w": torch.ones(5000)}, path)
    os.truncate(path, 10_000)
    with pytest.raises(TensorFileError, match="but the file has 10,000: it was truncated or changed"):
        read_state_dict(path, WHERE)
