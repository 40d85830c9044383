"""A loaded module -> what is stored of it: each tensor once, tied names as aliases.

The module is the one that the framework's own loader made of the checkpoint. So whatever upstream does on
the way (renamed keys, fused experts, computed buffers) has happened, and is baked as it ended up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from prebake.errors import SourceError
from prebake.modules.assembly import Slot, slots
from prebake.weights.tensors import DTYPE_NAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensors:
    """What a module holds, by name. The tensors are the module's own: nothing is copied here."""

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    """What its state dict holds, tied tensors under their first name only."""
    hidden: dict[str, torch.Tensor] = field(default_factory=dict)
    """What its state dict leaves out: non-persistent buffers and tensors that are plain attributes."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Tied name → the name that is stored."""

    @property
    def stored(self) -> Mapping[str, torch.Tensor]:
        return {**self.state, **self.hidden}


def tensors_of(module: nn.Module, where: str) -> Tensors:
    """Take every tensor of the module.

    Tensors are tied where they are the same elements (`identity_of`). The first name in the module's order is
    stored, which is the one that frameworks keep too. Plain attributes without values are left out: loaders
    forget some that are never used. Raises SourceError for a tensor that safetensors cannot hold, or for one of
    a state dict or a buffer that has no values.
    """
    taken = Tensors()
    first: dict[tuple[object, ...], str] = {}
    for slot in sorted(slots(module), key=lambda slot: not slot.saved):
        if slot.kind == "attribute" and slot.tensor.is_meta:
            continue
        _check(slot, where)
        identity = identity_of(slot.tensor)
        known = first.setdefault(identity, slot.key) if slot.tensor.numel() else slot.key
        if known != slot.key:
            taken.aliases[slot.key] = known
        elif slot.saved:
            taken.state[slot.key] = slot.tensor
        else:
            taken.hidden[slot.key] = slot.tensor
    return taken


def identity_of(tensor: torch.Tensor) -> tuple[object, ...]:
    """Equal for tensors that are the same elements: same storage, type, offset, shape and strides."""
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride())


def _check(slot: Slot, where: str) -> None:
    if slot.tensor.is_meta and slot.kind == "extra":
        raise SourceError(f"{where}: {slot.key} is extra state that is no tensor, which safetensors cannot hold")
    if slot.tensor.is_meta:
        raise SourceError(f"{where}: {slot.key} has no values after the ordinary load")
    if slot.tensor.layout is not torch.strided or slot.tensor.is_quantized:
        raise SourceError(
            f"{where}: {slot.key} is {'quantised' if slot.tensor.is_quantized else slot.tensor.layout}, "
            "which safetensors cannot hold"
        )
    if slot.tensor.dtype not in DTYPE_NAMES:
        raise SourceError(f"{where}: {slot.key} is {slot.tensor.dtype}, which safetensors cannot hold")
