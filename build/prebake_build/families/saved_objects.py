"""Describes an object that `torch.load(…, weights_only=True)` returned as JSON and tensors by name.

`prebake.modules.saved_object` reads this back. Tensors that are the same elements are stored once. A tensor whose
elements lie in another order than its dimensions (channels last) keeps that order; other strides become contiguous.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from prebake.errors import SourceError
from prebake.modules.assembly import identity_of

DEEPEST = 100
"""Levels of containers: below the recursion limit of every reader."""
MOST = 5_000_000
"""Values in all containers: an object of shared containers may be exponentially larger than its file."""


@dataclass(slots=True)
class Described:
    """An object as JSON values and tensors."""

    shape: Any = None
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)

    @property
    def text(self) -> str:
        return json.dumps(self.shape, separators=(",", ":")) + "\n"


def describe(value: Any, where: str) -> Described:
    """The object as JSON and tensors. Raises SourceError, which begins with `where`, for what can't be described."""
    describing = _Describing(where)
    shape = describing.value(value, ())
    return Described(shape, describing.tensors)


class _Describing:
    def __init__(self, where: str) -> None:
        self._where = where
        self._names: dict[tuple[object, ...], str] = {}
        self._count = 0
        self.tensors: dict[str, torch.Tensor] = {}

    def value(self, value: Any, path: tuple[Any, ...]) -> Any:
        """A scalar unchanged, or a list of a tag and its arguments."""
        self._count += 1
        if len(path) > DEEPEST:
            raise self._refusal(path[:5], f"is nested more than {DEEPEST} levels deep")
        if self._count > MOST:
            raise SourceError(f"{self._where}: holds more than {MOST:,} values")
        if isinstance(value, torch.Tensor):
            return self._tensor(value, path)
        kind = type(value)
        if kind in _ATOMS:
            return _ATOMS[kind](value)
        if kind is str:
            if any("\ud800" <= character <= "\udfff" for character in value):
                raise self._refusal(path, "is a string that is not Unicode")
            return value
        return self._container(value, path)

    def _container(self, value: Any, path: tuple[Any, ...]) -> list[Any]:
        kind = type(value)
        if kind in (list, tuple):
            return [kind.__name__, *(self.value(item, (*path, index)) for index, item in enumerate(value))]
        if kind is set:
            return ["set", *(self.value(item, (*path, "item")) for item in sorted(value, key=repr))]
        if kind in (dict, Counter):
            return ["dict" if kind is dict else "counter", *self._pairs(value, path)]
        if kind is OrderedDict:
            attributes = {name: self.value(item, (*path, name)) for name, item in sorted(vars(value).items())}
            return ["ordered", attributes, *self._pairs(value, path)]
        raise self._refusal(path, f"is a {kind.__module__}.{kind.__qualname__}")

    def _pairs(self, value: Mapping[Any, Any], path: tuple[Any, ...]) -> list[Any]:
        return [[self.value(key, (*path, "key")), self.value(item, (*path, key))] for key, item in value.items()]

    def _tensor(self, tensor: torch.Tensor, path: tuple[Any, ...]) -> Any:
        if type(tensor) not in (torch.Tensor, nn.Parameter):
            raise self._refusal(path, f"is a {type(tensor).__qualname__}")
        if getattr(tensor, "__dict__", None):
            raise self._refusal(path, f"is a tensor with the attribute {min(vars(tensor))}")
        kind = "parameter" if isinstance(tensor, nn.Parameter) else "tensor"
        order = _order(tensor)
        identity = identity_of(tensor) if _is_plain(tensor) and tensor.numel() else (id(tensor),)
        if identity not in self._names:
            self._names[identity] = name = self._free(".".join(map(str, path)) or "tensor")
            self.tensors[name] = tensor.detach() if order is None else tensor.detach().permute(order)
        name = self._names[identity]
        back = [] if order is None else [[order.index(position) for position in range(len(order))]]
        return ["tensor", name, kind, tensor.requires_grad, *back]

    def _free(self, name: str) -> str:
        found, number = name, 1
        while found in self.tensors or found == "__metadata__":  # safetensors' own key
            number += 1
            found = f"{name}#{number}"
        return found

    def _refusal(self, path: tuple[Any, ...], what: str) -> SourceError:
        spot = ".".join(map(str, path))[:80] or "the file's object"
        return SourceError(
            f"{self._where}: {spot} {what}, which a baked file of tensors cannot hold (it holds tensors, numbers, "
            "strings, bytes, None, dtypes, devices and sizes, in dicts, lists, tuples and sets): save a file without it"
        )


def _float(value: float) -> Any:
    return value if math.isfinite(value) else ["number", repr(value)]


def _int(value: int) -> Any:
    return value if value.bit_length() < 64 else ["int", hex(value)]


_ATOMS: Mapping[type, Callable[[Any], Any]] = {
    type(None): lambda value: value,
    bool: lambda value: value,
    int: _int,
    float: _float,
    complex: lambda value: ["complex", _float(value.real), _float(value.imag)],
    bytes: lambda value: ["bytes", value.hex()],
    bytearray: lambda value: ["bytearray", value.hex()],
    torch.Size: lambda value: ["size", *value],
    torch.dtype: lambda value: ["torch", str(value).removeprefix("torch.")],
    torch.layout: lambda value: ["torch", str(value).removeprefix("torch.")],
    torch.memory_format: lambda value: ["torch", str(value).removeprefix("torch.")],
    torch.device: lambda value: ["device", str(value)],
}  # fmt: skip


def _is_plain(tensor: torch.Tensor) -> bool:
    return tensor.layout is torch.strided and not tensor.is_quantized and not tensor.is_meta


def _order(tensor: torch.Tensor) -> list[int] | None:
    """The dimensions in the order of their strides, if the elements lie densely in that order and not in the usual."""
    if not _is_plain(tensor) or tensor.is_contiguous():
        return None
    strides = tensor.stride()
    order = sorted(range(tensor.dim()), key=lambda dimension: (-strides[dimension], dimension))
    return order if tensor.permute(order).is_contiguous() else None


def difference(expected: Any, found: Any, path: str = "the object") -> str | None:
    """Where and how two objects differ, or None: same types, keys in the same order, and bits of tensors."""
    if type(expected) is not type(found):
        return f"{path}: expected a {type(expected).__qualname__}, found a {type(found).__qualname__}"
    if isinstance(expected, torch.Tensor):
        return _tensors_differ(expected, found, path)
    if isinstance(expected, dict):
        if list(expected) != list(found) and repr(list(expected)) != repr(list(found)):
            return f"{path}: its keys differ"
        pairs = [
            (f"{path}.{key}", one, other) for (key, one), other in zip(expected.items(), found.values(), strict=True)
        ]
        if isinstance(expected, OrderedDict):
            pairs.append((f"{path}: attributes", vars(expected), vars(found)))
    elif isinstance(expected, (list, tuple)) and not isinstance(expected, torch.Size):
        if len(expected) != len(found):
            return f"{path}: expected {len(expected)} items, found {len(found)}"
        pairs = [(f"{path}.{index}", *both) for index, both in enumerate(zip(expected, found, strict=True))]
    else:
        return None if expected == found or repr(expected) == repr(found) else f"{path}: its value differs"
    return next((text for name, one, other in pairs if (text := difference(one, other, name))), None)


def _tensors_differ(expected: torch.Tensor, found: torch.Tensor, path: str) -> str | None:
    for what in ("dtype", "shape", "requires_grad"):
        if getattr(expected, what) != getattr(found, what):
            return f"{path}: expected {what} {getattr(expected, what)}, found {getattr(found, what)}"
    if not _is_plain(expected) or identity_of(expected) == identity_of(found):
        return None  # the proof of the baked folder tells what such tensors are
    one, other = (tensor.detach().contiguous().reshape(-1).view(torch.uint8) for tensor in (expected, found))
    return None if torch.equal(one, other) else f"{path}: its values differ"
