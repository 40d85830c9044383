"""Every tensor of a module is listed, and every one is put into a skeleton, or it is refused with a reason."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from helpers.runtime_fakes import odd, plain, with_list
from prebake.errors import LoadError
from prebake.modules.assembly import assign, relink, slots
from prebake.modules.skeleton import Skeleton
from prebake_build.baking.convert import tensors_of

WORDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


def rebuilt(factory: Callable[[], nn.Module]) -> tuple[nn.Module, nn.Module]:
    """A module, and a skeleton of the same class that got its tensors."""
    module = factory().eval()
    taken = tensors_of(module, "test")
    with Skeleton():
        skeleton = factory().eval()
    assign(skeleton, taken.stored, taken.aliases)
    return module, skeleton


def test_slots_name_every_kind_of_tensor_once() -> None:
    kinds: dict[str, set[str]] = {}
    for slot in slots(odd()):
        kinds.setdefault(slot.kind, set()).add(slot.key)
    assert kinds["buffer"] == {"saved"}
    assert kinds["hidden"] == {"unsaved"}
    assert kinds["attribute"] == {"table"}
    assert {"embedding.weight", "out.weight", "scale", "frozen", "lstm.weight_hh_l1_reverse"} <= kinds["parameter"]
    assert not any(slot.saved for slot in slots(odd()) if slot.key in ("unsaved", "table"))


def test_a_module_at_two_paths_has_a_slot_for_each() -> None:
    shared = nn.Linear(2, 2)
    keys = [slot.key for slot in slots(nn.ModuleDict({"a": shared, "b": shared}))]
    assert keys == ["a.weight", "a.bias", "b.weight", "b.bias"]


def test_a_rebuilt_module_answers_bit_for_bit_the_same() -> None:
    """The LSTM and the GRU answer from the assigned weights, not from those they were built with."""
    with torch.inference_mode():
        module, skeleton = rebuilt(odd)
        assert torch.equal(skeleton(WORDS), module(WORDS))


def test_no_tensor_is_copied_and_none_stays_on_meta() -> None:
    module, skeleton = rebuilt(odd)
    expected = {slot.key: slot.tensor.data_ptr() for slot in slots(module)}
    assert {slot.key: slot.tensor.data_ptr() for slot in slots(skeleton)} == expected
    assert not any(slot.tensor.is_meta for slot in slots(skeleton))


def test_tied_weights_are_one_parameter() -> None:
    _, skeleton = rebuilt(odd)
    assert skeleton.get_parameter("out.weight") is skeleton.get_parameter("embedding.weight")
    assert len(list(skeleton.parameters())) == len({id(parameter) for parameter in skeleton.parameters()})


def test_every_slot_keeps_its_kind() -> None:
    module, skeleton = rebuilt(odd)
    assert {(slot.key, slot.kind) for slot in slots(skeleton)} == {(slot.key, slot.kind) for slot in slots(module)}
    assert skeleton.state_dict().keys() == module.state_dict().keys()
    assert not skeleton.get_parameter("frozen").requires_grad
    assert skeleton.get_parameter("scale").requires_grad


def test_a_rebuilt_module_can_be_trained() -> None:
    module, skeleton = rebuilt(plain)
    del module
    skeleton.train()
    before = skeleton.get_parameter("0.weight").detach().clone()
    optimizer = torch.optim.SGD(skeleton.parameters(), lr=1.0)
    skeleton(torch.randn(8, 4)).square().sum().backward()
    optimizer.step()
    assert not torch.equal(skeleton.get_parameter("0.weight"), before)


def test_a_rebuilt_lstm_is_trained_through_the_weights_it_answers_from() -> None:
    _, skeleton = rebuilt(odd)
    skeleton.train()
    with torch.no_grad():
        first = skeleton(WORDS)
    skeleton(WORDS).sum().backward()
    with torch.no_grad():
        for name, parameter in skeleton.named_parameters():
            if name.startswith("lstm"):
                assert parameter.grad is not None
                parameter.sub_(parameter.grad)
        assert not torch.equal(skeleton(WORDS), first)


def test_missing_and_left_over_names_are_both_told() -> None:
    tensors = tensors_of(nn.Linear(2, 2), "test").stored
    with pytest.raises(LoadError) as error:
        assign(nn.Linear(2, 2), {"weight": tensors["weight"], "gain": torch.ones(1)}, {})
    assert str(error.value) == (
        "the class as installed differs from the one that was baked: not baked: bias; baked but not in the class: gain"
    )


def test_many_names_are_cut_at_five() -> None:
    with pytest.raises(LoadError, match=r"not baked: 0\.bias, 0\.weight, 1\.bias, 1\.weight, 2\.bias and 15 more$"):
        assign(nn.Sequential(*(nn.Linear(1, 1) for _ in range(10))), {}, {})


def test_another_shape_is_refused_with_both() -> None:
    tensors = tensors_of(nn.Linear(2, 3), "test").stored
    with pytest.raises(LoadError) as error:
        assign(nn.Linear(2, 2), tensors, {})
    assert str(error.value) == "weight: the class builds (2, 2), baked (3, 2)"


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_a_tensor_in_a_list_gets_its_values_back(depth: int) -> None:
    """It has no name of its own in the module, and the constructor fills it at random."""
    module, skeleton = rebuilt(lambda: with_list(depth))
    kept: Any = skeleton.kept
    expected: Any = module.kept
    for _ in range(depth):
        kept, expected = kept[0], expected[0]
    assert kept is expected
    with Skeleton():
        skeleton = with_list(depth)
    with pytest.raises(LoadError) as error:
        assign(skeleton, tensors_of(nn.Linear(2, 2), "test").stored, {})
    assert str(error.value) == f"left on the meta device after loading: kept{'.0' * depth}"


def test_relinked_weights_are_the_modules_own() -> None:
    lstm = nn.LSTM(2, 2)
    lstm.weight_ih_l0 = nn.Parameter(torch.zeros(8, 2))
    lstm._flat_weights = []
    relink(nn.Sequential(lstm))
    assert lstm._flat_weights[0] is lstm.weight_ih_l0
    assert len(lstm._flat_weights) == 4
