"""Every tensor of a module is taken once; tied names are aliases."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from helpers.networks import Tagger
from prebake.errors import SourceError
from prebake.modules.assembly import slots
from prebake_build.baking.convert import tensors_of


def test_every_tensor_of_the_module_is_stored_or_an_alias_of_one_that_is() -> None:
    module = Tagger()
    taken = tensors_of(module, "models.tagger")
    assert taken.stored.keys() | taken.aliases.keys() == {slot.key for slot in slots(module)}
    assert not taken.stored.keys() & taken.aliases.keys()
    assert set(taken.aliases.values()) <= taken.stored.keys()


def test_tied_tensors_are_stored_under_the_first_name() -> None:
    taken = tensors_of(Tagger(), "models.tagger")
    assert taken.aliases["out.weight"] == "embedding.weight"
    assert "out.weight" not in taken.state


def test_a_module_at_several_paths_is_stored_once() -> None:
    aliases = tensors_of(Tagger(), "models.tagger").aliases
    assert {name: stored for name, stored in aliases.items() if name.startswith("gates.")} == {
        "gates.0.weight": "gate.weight", "gates.0.bias": "gate.bias",
        "gates.1.weight": "gate.weight", "gates.1.bias": "gate.bias",
    }  # fmt: skip


def test_what_a_state_dict_leaves_out_is_hidden() -> None:
    module = Tagger()
    taken = tensors_of(module, "models.tagger")
    assert set(taken.hidden) == {"scale", "table"}
    assert taken.state.keys() | taken.aliases.keys() == module.state_dict().keys()


def test_nothing_is_copied() -> None:
    module = Tagger()
    assert tensors_of(module, "models.tagger").state["embedding.weight"] is module.embedding.weight


def test_a_saved_name_is_the_one_that_is_stored_where_a_hidden_one_comes_first() -> None:
    module = nn.Module()
    module.register_buffer("first", torch.arange(3.0), persistent=False)
    module.register_buffer("second", module.get_buffer("first"))
    taken = tensors_of(module, "models.m")
    assert (list(taken.state), list(taken.hidden), taken.aliases) == (["second"], [], {"first": "second"})


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda whole: whole[:2], lambda whole: whole[2:]),
        (lambda whole: whole[:2], lambda whole: whole[:3]),
        (lambda whole: whole.view(2, 2), lambda whole: whole),
        (lambda whole: whole.view(2, 2), lambda whole: whole.view(2, 2).t()),
        (lambda whole: whole, lambda whole: whole.view(torch.int32)),
    ],
    ids=["parts", "overlapping", "other shape", "other strides", "other type"],
)
def test_views_of_one_storage_that_are_not_the_same_elements_are_not_tied(one: Any, other: Any) -> None:
    whole = torch.arange(4.0)
    module = nn.Module()
    module.register_buffer("one", one(whole))
    module.register_buffer("other", other(whole))
    assert tensors_of(module, "models.m").aliases == {}


def test_empty_tensors_are_not_tied() -> None:
    module = nn.Module()
    module.register_buffer("one", torch.empty(0))
    module.register_buffer("other", torch.empty(0))
    taken = tensors_of(module, "models.m")
    assert set(taken.state) == {"one", "other"}
    assert taken.aliases == {}


def test_equal_values_alone_do_not_tie() -> None:
    module = nn.Module()
    module.register_buffer("one", torch.ones(3))
    module.register_buffer("other", torch.ones(3))
    assert tensors_of(module, "models.m").aliases == {}


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (lambda: torch.empty(2, device="meta"), "models.m: odd has no values after the ordinary load"),
        (lambda: torch.eye(2).to_sparse(), "models.m: odd is torch.sparse_coo, which safetensors cannot hold"),
        (lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
         "models.m: odd is quantised, which safetensors cannot hold"),
        (lambda: torch.ones(2, dtype=torch.complex128),
         "models.m: odd is torch.complex128, which safetensors cannot hold"),
    ],
    ids=["meta", "sparse", "quantised", "complex128"],
)  # fmt: skip
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor")
def test_what_safetensors_cannot_hold_is_refused(tensor: Any, message: str) -> None:
    module = nn.Module()
    module.register_buffer("odd", tensor())
    with pytest.raises(SourceError) as caught:
        tensors_of(module, "models.m")
    assert str(caught.value) == message
