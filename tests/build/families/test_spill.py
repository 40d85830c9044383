"""Tensors that a load computes are moved into unlinked files, with the same values, where that is asked for."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from helpers.baking import names
from prebake_build.families import spill
from prebake_build.families.spill import spilled, spilling, spilling_transformers
from prebake_build.families.state_dicts import cast
from prebake_build.files.pages import Mappings


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(spill, "_SMALLEST", 4096)


def in_a_file(tensor: torch.Tensor) -> bool:
    maps = Mappings(Path("/proc/self/maps"))
    return maps.place(tensor.data_ptr(), tensor.numel() * tensor.element_size()) is not None


@pytest.mark.parametrize("tensor", [torch.randn(50, 50), torch.randn(64, 64).bfloat16(), torch.randn(40, 60).t()])
def test_a_tensor_has_its_values_in_a_file_that_has_no_name(tmp_path: Path, tensor: torch.Tensor) -> None:
    with spilling(tmp_path):
        kept = spilled(tensor)
        again = spilled(kept)
    assert (kept.dtype, kept.shape, in_a_file(kept), names(tmp_path)) == (tensor.dtype, tensor.shape, True, [])
    assert torch.equal(kept, tensor)
    assert again is kept


def test_without_a_folder_and_for_small_tensors_nothing_moves(tmp_path: Path) -> None:
    large, tiny = torch.ones(64, 64), torch.ones(3)
    assert spilled(large) is large
    with spilling(tmp_path):
        assert spilled(tiny) is tiny


def test_a_cast_state_dict_is_in_files(tmp_path: Path) -> None:
    with spilling(tmp_path):
        found = cast({"w": torch.ones(64, 64)}, torch.float64)["w"]
    assert (found.dtype, in_a_file(found)) == (torch.float64, True)


@pytest.mark.skipif(version("transformers") < "5", reason="transformers 4 converts parameters where it reads them")
def test_parameters_that_transformers_converts_are_in_files_and_the_same(tmp_path: Path) -> None:
    from transformers import BertConfig, BertModel

    torch.manual_seed(3)
    config = BertConfig(hidden_size=64, num_hidden_layers=1, num_attention_heads=2, intermediate_size=96, vocab_size=50)
    BertModel(config).save_pretrained(tmp_path / "c")
    expected = BertModel.from_pretrained(tmp_path / "c", dtype=torch.float64).state_dict()
    (tmp_path / "spill").mkdir()
    with spilling(tmp_path / "spill"), spilling_transformers():
        found = BertModel.from_pretrained(tmp_path / "c", dtype=torch.float64).state_dict()
    assert [name for name, tensor in found.items() if not torch.equal(tensor, expected[name])] == []
    large = [tensor for tensor in found.values() if tensor.nbytes >= 4096]
    assert len(large) > 5
    assert all(in_a_file(tensor) for tensor in large)
    from transformers import core_model_loading

    assert core_model_loading.set_param_for_module.__name__ == "set_param_for_module"
