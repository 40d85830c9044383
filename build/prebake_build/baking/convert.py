"""Collects the tensors of a loaded module for storage: each tensor once, tied names as aliases.

The framework's own loader has made the module from the checkpoint. So all of upstream's changes (renamed keys, fused
experts, computed buffers) have happened, and their result is baked.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from prebake.errors import SourceError
from prebake.modules.assembly import Slot, identity_of, slots
from prebake.weights.tensors import DTYPE_NAMES


@dataclass(frozen=True, kw_only=True, slots=True)
class Tensors:
    """A module's tensors by name. These are the module's own tensors, not copies."""

    state: dict[str, torch.Tensor] = field(default_factory=dict)
    """The tensors of its state dict; tied tensors only under their first name."""
    hidden: dict[str, torch.Tensor] = field(default_factory=dict)
    """The tensors outside its state dict: non-persistent buffers and plain attributes."""
    aliases: dict[str, str] = field(default_factory=dict)
    """Tied name → the name that is stored."""

    @property
    def stored(self) -> Mapping[str, torch.Tensor]:
        return {**self.state, **self.hidden}


def tensors_of(module: nn.Module, where: str) -> Tensors:
    """Collect every tensor of the module.

    Tensors are tied if they are the same elements (`identity_of`). The first name in the module's order is stored;
    frameworks keep the same one. Plain attributes without values are left out: loaders leave some unused ones on the
    meta device. Raises SourceError for a tensor that safetensors can't store, and for a tensor of the state dict or a
    buffer that has no values.
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


def parts_of(
    state: Mapping[str, torch.Tensor], files: Mapping[str, str], where: str
) -> dict[str, dict[str, torch.Tensor]]:
    """The state dict by file, sorted by path, each tensor in the file with the longest prefix of its name, without it.

    A file without tensors is left out, unless it is the only one. Raises SourceError if a tensor belongs in no file.
    """
    parts: dict[str, dict[str, torch.Tensor]] = {path: {} for path in sorted(files)}
    for name, tensor in state.items():
        fitting = [path for path in parts if name.startswith(files[path])]
        if not fitting:
            raise SourceError(f"{where}: {name} belongs in none of the files {', '.join(parts)}")
        path = max(fitting, key=lambda path: len(files[path]))
        parts[path][name[len(files[path]) :]] = tensor
    return {path: tensors for path, tensors in parts.items() if tensors or len(parts) == 1}


def _check(slot: Slot, where: str) -> None:
    if slot.tensor.is_meta and slot.kind == "extra":
        raise SourceError(f"{where}: {slot.key} is extra state that is not a tensor, which safetensors cannot hold")
    if slot.tensor.is_meta:
        raise SourceError(f"{where}: {slot.key} has no values after the ordinary load")
    if slot.tensor.layout is not torch.strided or slot.tensor.is_quantized:
        raise SourceError(
            f"{where}: {slot.key} is {'quantised' if slot.tensor.is_quantized else slot.tensor.layout}, "
            "which safetensors cannot hold"
        )
    if slot.tensor.dtype not in DTYPE_NAMES:
        raise SourceError(f"{where}: {slot.key} is {slot.tensor.dtype}, which safetensors cannot hold")
