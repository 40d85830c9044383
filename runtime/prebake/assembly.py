"""A module's tensors, all of them: listed, taken out, and put into a skeleton.

A state dict leaves out what upstream does not save: non-persistent buffers, and tensors kept as plain
attributes. A module built on the meta device lacks them too. So baking lists every tensor a module holds
(`slots`), and loading assigns every one of them (`assign`) and proves that nothing is left on meta.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from prebake.errors import LoadError

Kind = Literal["parameter", "buffer", "hidden", "attribute"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a module that holds a tensor."""

    key: str
    """Path of the owner and the attribute, joined by dots: the state dict's key, where it has one."""
    kind: Kind
    """`hidden` is a non-persistent buffer; `attribute` a tensor that is neither parameter nor buffer."""
    owner: nn.Module
    name: str
    tensor: torch.Tensor

    @property
    def saved(self) -> bool:
        """Whether a state dict holds it."""
        return self.kind in ("parameter", "buffer")


def slots(module: nn.Module) -> Iterator[Slot]:
    """Every tensor of the module, each name once; a module that is reachable by two paths gives both."""
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield Slot(prefix + name, "parameter", owner, name, parameter)
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                kind: Kind = "hidden" if name in owner._non_persistent_buffers_set else "buffer"
                yield Slot(prefix + name, kind, owner, name, buffer)
        for name, value in vars(owner).items():
            if isinstance(value, torch.Tensor):
                yield Slot(prefix + name, "attribute", owner, name, value)


def assign(module: nn.Module, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
    """Put the tensors into the skeleton, without copying; tied names share one parameter.

    `aliases` maps names that are not in `tensors` to those whose tensor they share. Raises LoadError
    where a name is missing or left over, a shape differs, or a tensor stays on the meta device.
    """
    skeleton = list(slots(module))
    _check_names(skeleton, tensors, aliases)
    shared: dict[str, nn.Parameter] = {}
    for slot in skeleton:
        key = aliases.get(slot.key, slot.key)
        tensor = tensors[key]
        if tensor.shape != slot.tensor.shape:
            raise LoadError(f"{slot.key}: the class builds {tuple(slot.tensor.shape)}, baked {tuple(tensor.shape)}")
        if slot.kind == "parameter":
            if key not in shared:
                shared[key] = nn.Parameter(tensor, requires_grad=slot.tensor.requires_grad)
            slot.owner._parameters[slot.name] = shared[key]
        elif slot.kind == "attribute":
            setattr(slot.owner, slot.name, tensor)
        else:
            slot.owner._buffers[slot.name] = tensor
    relink(module)
    _check_nothing_on_meta(module)


def relink(module: nn.Module) -> None:
    """LSTM and GRU keep a second list of references to their weights: renew it after assigning."""
    for part in module.modules():
        if isinstance(part, nn.RNNBase):
            part._flat_weights = [getattr(part, name, None) for name in part._flat_weights_names]


def _check_names(skeleton: list[Slot], tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
    wanted = {aliases.get(slot.key, slot.key) for slot in skeleton}
    missing, left_over = sorted(wanted - tensors.keys()), sorted(tensors.keys() - wanted)
    if missing or left_over:
        raise LoadError(
            "the class as installed differs from the one that was baked: "
            + "; ".join(
                f"{what}: {', '.join(names[:5])}{f' and {len(names) - 5} more' if len(names) > 5 else ''}"
                for what, names in (("not baked", missing), ("baked but not in the class", left_over))
                if names
            )
        )


def _check_nothing_on_meta(module: nn.Module) -> None:
    left = [slot.key for slot in slots(module) if slot.tensor.is_meta]
    for path, owner in module.named_modules():
        left += [f"{path}.{name}" for name, value in vars(owner).items() if _holds_meta(value)]
    if left:
        raise LoadError(f"left on the meta device after loading: {', '.join(left[:5])}")


def _holds_meta(value: object) -> bool:
    if isinstance(value, Mapping):
        value = list(value.values())
    return isinstance(value, (list, tuple)) and any(isinstance(item, torch.Tensor) and item.is_meta for item in value)
