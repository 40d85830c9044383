"""Finds tensors that `nn.Module` does not list: in attributes, containers, objects, unregistered modules.

`nn.Module` lists its parameters, buffers and submodules. A module may hold other tensors: a table in an attribute, a
list with one mask per layer, a helper object, a plain list of layers. Here each such tensor gets a key, which is its
path of names and indices (`decoder.masks.0`), and a function that replaces it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from torch import nn

from prebake.errors import LoadError

Kept = tuple[str, torch.Tensor, Callable[[Any], object]]
"""Key, tensor, and the function that replaces it."""

_Item = tuple[object, Any, Callable[[Any], object]]
"""Name or index, the value, and the function that replaces it."""

_OWN = frozenset(vars(nn.Module())) | {"_flat_weights", "_flat_weight_refs"}
"""Attributes of every nn.Module and recurrent module; `prebake.modules.assembly` handles these."""
_PLAIN = frozenset({
    bool, int, float, complex, str, bytes, type(None), type, torch.dtype, torch.device, torch.Size, FunctionType,
    BuiltinFunctionType, MethodType,
})  # fmt: skip
_NOT_LOOKED_INTO = frozenset(sys.stdlib_module_names) | {"torch", "numpy", "tokenizers", "prebake"}
"""Packages whose objects (except tensors, modules and containers) hold no tensors of a model."""


def kept_tensors(prefix: str, owner: nn.Module, seen: set[int]) -> Iterator[Kept]:
    """The tensors in the attributes of one registered module.

    `seen` holds the ids of objects that were visited or are listed elsewhere; this function adds to it. No object is
    visited twice, so cycles end. Initially it holds the ids of all registered modules.
    """
    attributes = vars(owner)
    for name, value in attributes.items():
        if name not in _OWN and type(value) not in _PLAIN:
            yield from _within(prefix + name, value, partial(attributes.__setitem__, name), seen)


def _within(key: str, value: Any, put: Callable[[Any], object], seen: set[int]) -> Iterator[Kept]:
    if isinstance(value, torch.Tensor):
        yield key, value, put
        return
    if type(value) in _PLAIN or id(value) in seen:
        return
    seen.add(id(value))
    for name, item, put_item in _items(value, put):
        yield from _within(f"{key}.{name}", item, put_item, seen)


def _items(value: Any, put: Callable[[Any], object]) -> Iterator[_Item]:
    """The direct items of a container, a module or an object."""
    if isinstance(value, (tuple, list)):
        yield from _in_sequence(value, put)
    elif isinstance(value, dict):
        for name, item in value.items():
            yield name, item, partial(value.__setitem__, name)
    elif isinstance(value, nn.Module):
        yield from _in_module(value, put)
    elif isinstance(value, (set, frozenset)):
        for index, item in enumerate(value):
            yield index, item, _refuse
    elif type(value).__module__.partition(".")[0] not in _NOT_LOOKED_INTO and hasattr(value, "__dict__"):
        yield from _items(vars(value), put)


def _in_module(value: nn.Module, put: Callable[[Any], object]) -> Iterator[_Item]:
    for table in (value._parameters, value._buffers, value._modules):
        yield from _items(table, put)
    for name, item in vars(value).items():
        if name not in _OWN:
            yield name, item, partial(vars(value).__setitem__, name)


def _in_sequence(value: Any, put: Callable[[Any], object]) -> Iterator[_Item]:
    items = list(value)
    for index, item in enumerate(items):
        if isinstance(value, list):
            yield index, item, partial(value.__setitem__, index)
        else:
            yield index, item, partial(_put_into_tuple, type(value), items, index, put)


def _refuse(item: Any) -> None:
    raise LoadError("a tensor in a set has no name that stays the same in the next process")


def _put_into_tuple(kind: Any, items: list[Any], index: int, put: Callable[[Any], object], item: Any) -> None:
    items[index] = item
    put(kind(*items) if hasattr(kind, "_fields") else kind(items))
