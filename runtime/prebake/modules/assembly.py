"""Lists every tensor of a module, and assigns tensors to a skeleton.

A state dict lacks what upstream does not save: non-persistent buffers, and tensors in plain attributes, in lists, or in
unregistered modules. A module built on the meta device has no values for them either. So the bake lists every tensor of
a module (`slots`), and a load assigns them all (`assign`) and checks that none is left on the meta device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import nn

from prebake.errors import LoadError
from prebake.modules.kept import kept_tensors
from prebake.weights.tensors import aligned

Kind = Literal["parameter", "buffer", "hidden", "attribute", "extra"]


@dataclass(frozen=True, slots=True)
class Slot:
    """One place in a module that holds a tensor."""

    key: str
    """Path of the owner and name of the attribute, joined by dots; the key in the state dict, if it has one."""
    kind: Kind
    """`hidden`: a non-persistent buffer. `attribute`: a tensor that is neither parameter nor buffer, or whose module is
    not registered. `extra`: the result of the module's `get_extra_state`."""
    tensor: torch.Tensor
    put: Callable[[Any], object]
    """Put another tensor into the place."""

    @property
    def saved(self) -> bool:
        """Whether the state dict contains it."""
        return self.kind in ("parameter", "buffer", "extra")


def slots(module: nn.Module) -> Iterator[Slot]:
    """Every tensor of the module, each name once. A module that is reachable by two paths is listed under both."""
    seen = {id(part) for part in module.modules()}
    for path, owner in module.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield Slot(prefix + name, "parameter", parameter, partial(owner._parameters.__setitem__, name))
        for name, buffer in owner._buffers.items():
            if buffer is not None:
                kind: Kind = "hidden" if name in owner._non_persistent_buffers_set else "buffer"
                yield Slot(prefix + name, kind, buffer, partial(owner._buffers.__setitem__, name))
        if type(owner).get_extra_state is not nn.Module.get_extra_state:
            yield _extra(prefix, owner)
        for key, tensor, put in kept_tensors(prefix, owner, seen):
            yield Slot(key, "attribute", tensor, put)


def _extra(prefix: str, owner: nn.Module) -> Slot:
    """The extra state; an empty meta tensor if it is not a tensor or does not exist yet."""
    try:
        state = owner.get_extra_state()
    except Exception:  # a skeleton may lack what `get_extra_state` reads
        state = None
    tensor = state if isinstance(state, torch.Tensor) else torch.empty(0, device="meta")
    return Slot(f"{prefix}_extra_state", "extra", tensor, owner.set_extra_state)


def identity_of(tensor: torch.Tensor) -> tuple[object, ...]:
    """A key that is equal for tensors with the same elements: same storage, dtype, offset, shape and strides."""
    return (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), tensor.dtype, tensor.shape, tensor.stride())


def assign(module: nn.Module, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]) -> None:
    """Assign the tensors to the skeleton; only unaligned tensors are copied (see `aligned`). Tied names share one
    parameter.

    `aliases` maps names that are not in `tensors` to the names whose tensors they share. Raises LoadError if a name is
    missing or left over, a shape differs, or a tensor stays on the meta device. An attribute that was not baked,
    because the ordinary load leaves it without values, stays as the constructor made it.
    """
    skeleton = [
        slot for slot in slots(module) if slot.kind != "attribute" or aliases.get(slot.key, slot.key) in tensors
    ]
    _check_names(skeleton, tensors, aliases)
    placed = {key: aligned(tensor) for key, tensor in tensors.items()}
    shared: dict[str, nn.Parameter] = {}
    for slot in skeleton:
        key = aliases.get(slot.key, slot.key)
        tensor = placed[key]
        if tensor.shape != slot.tensor.shape and slot.kind != "extra":
            raise LoadError(f"{slot.key}: the class builds {tuple(slot.tensor.shape)}, baked {tuple(tensor.shape)}")
        if isinstance(slot.tensor, nn.Parameter):
            if key not in shared:
                wanted = slot.tensor.requires_grad and (tensor.is_floating_point() or tensor.is_complex())
                shared[key] = nn.Parameter(tensor, requires_grad=wanted)
            tensor = shared[key]
        slot.put(tensor)
    relink(module)
    _check_nothing_on_meta(module)


def relink(module: nn.Module) -> None:
    """Rebuild the second list of references that LSTM and GRU keep to their weights."""
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
    left = [slot.key for slot in slots(module) if slot.tensor.is_meta and slot.kind != "extra"]
    if left:
        raise LoadError(f"left on the meta device after loading: {', '.join(left[:5])}")
