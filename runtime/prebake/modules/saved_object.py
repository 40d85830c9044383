"""An object that `torch.save` wrote, as a module: its tensors are buffers, and `object()` builds it around them.

`object.json` holds the object without its tensors, as nested values: a scalar stands for itself, everything else is a
list of a tag and its arguments; `_Builder` has all tags. It is data: no value names code.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from prebake.baked.model import BakedModel
from prebake.documents.messages import quote, reason
from prebake.errors import DocumentError, IntegrityError

FILE = "object.json"


@dataclass(frozen=True, slots=True)
class Shape:
    """What `object.json` holds. A class of its own, so that no tensor is looked for in it."""

    value: Any


class SavedObject(nn.Module):
    """The tensors of one file, as buffers named by their path in the object."""

    def __init__(self, shape: Shape, tensors: Mapping[str, torch.Tensor]) -> None:
        """`tensors` has at least those that the shape names."""
        super().__init__()
        self._shape = shape
        self._buffers.update(tensors)  # not register_buffer: it refuses names with dots

    def object(self) -> Any:
        """The object: containers are new at each call, tensors share the memory of the buffers.

        Raises DocumentError if the shape is malformed or names a tensor that is not there.
        """
        try:
            return _Builder(self._buffers).value(self._shape.value)
        except DocumentError:
            raise
        except Exception as error:  # the document is untrusted: wrong types and numbers of arguments
            text = reason(error)[:200].encode(errors="backslashreplace").decode()  # it may repeat lone surrogates
            raise DocumentError(f"{FILE}: is malformed: {text}") from error


def read_shape(baked: BakedModel) -> Shape:
    """The shape in the model's folder. Raises IntegrityError if it is missing or not what the manifest lists, and
    DocumentError if it is not JSON."""
    path = baked.folder / FILE
    expected = next((file.sha256 for file in baked.manifest.files if file.path == FILE), None)
    if expected is None:
        raise IntegrityError(f"{path}: is not among the files of the manifest")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: {reason(error)}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise IntegrityError(f"{path}: its sha256 differs from the manifest's")
    return parse_shape(data, str(path))


def parse_shape(data: bytes, where: str) -> Shape:
    """The shape in the bytes of an object.json. Raises DocumentError, which begins with `where`, if it is not JSON."""
    try:
        return Shape(json.loads(data))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where}: is not JSON: {reason(error)[:200]}") from error


class _Builder:
    """Builds one object. Methods named `_TAG` take the arguments that follow the tag."""

    def __init__(self, tensors: Mapping[str, torch.Tensor | None]) -> None:
        self._tensors = tensors
        self._made: dict[tuple[Any, ...], torch.Tensor] = {}

    def value(self, value: Any) -> Any:
        if isinstance(value, list):
            make: Callable[..., Any] | None = _TAGS.get(value[0]) if value and isinstance(value[0], str) else None
            if make is None:
                raise DocumentError(f"{FILE}: has no known tag in {quote(json.dumps(value))}")
            return make(self, *value[1:])
        if isinstance(value, dict):
            raise DocumentError(f"{FILE}: has a table, which stands for nothing")
        return value

    def _each(self, values: tuple[Any, ...]) -> list[Any]:
        return [self.value(value) for value in values]

    def _tensor(self, name: str, kind: str, requires_grad: bool, order: list[int] | None = None) -> torch.Tensor:
        stored = self._tensors.get(name)
        if kind not in ("tensor", "parameter"):
            raise DocumentError(f"{FILE}: {quote(kind)} is neither tensor nor parameter")
        if stored is None:
            raise DocumentError(f"{FILE}: names the {kind} {quote(name)}, which is not among the weights")
        key = (name, kind, requires_grad, None if order is None else tuple(order))
        if key not in self._made:
            whole = stored.detach() if order is None else stored.detach().permute(order)
            if kind == "parameter":
                self._made[key] = nn.Parameter(whole, requires_grad)
            else:
                self._made[key] = whole.requires_grad_(requires_grad)
        return self._made[key]

    def _dict(self, *pairs: Any) -> dict[Any, Any]:
        return {self.value(key): self.value(value) for key, value in pairs}

    def _ordered(self, attributes: dict[str, Any], *pairs: Any) -> OrderedDict[Any, Any]:
        made = OrderedDict((self.value(key), self.value(value)) for key, value in pairs)
        vars(made).update({name: self.value(value) for name, value in attributes.items()})
        return made

    def _counter(self, *pairs: Any) -> Counter[Any]:
        return Counter(self._dict(*pairs))

    def _list(self, *values: Any) -> list[Any]:
        return self._each(values)

    def _tuple(self, *values: Any) -> tuple[Any, ...]:
        return tuple(self._each(values))

    def _set(self, *values: Any) -> set[Any]:
        return set(self._each(values))

    def _size(self, *sizes: int) -> torch.Size:
        return torch.Size(sizes)

    def _number(self, text: str) -> float:
        return float(text)

    def _int(self, text: str) -> int:
        return int(text, 16)

    def _complex(self, real: Any, imaginary: Any) -> complex:
        return complex(self.value(real), self.value(imaginary))

    def _bytes(self, text: str) -> bytes:
        return bytes.fromhex(text)

    def _bytearray(self, text: str) -> bytearray:
        return bytearray.fromhex(text)

    def _torch(self, name: str) -> Any:
        """A dtype, layout or memory format: constants of torch."""
        found = vars(torch).get(name)
        if not isinstance(found, (torch.dtype, torch.layout, torch.memory_format)):
            raise DocumentError(f"{FILE}: {quote(name)} is not a dtype, layout or memory format of torch")
        return found

    def _device(self, name: str) -> torch.device:
        return torch.device(name)


_TAGS: Mapping[str, Callable[..., Any]] = {
    name: getattr(_Builder, f"_{name}")
    for name in (
        "tensor", "dict", "ordered", "counter", "list", "tuple", "set", "size", "number", "int", "complex", "bytes",
        "bytearray", "torch", "device",
    )
}  # fmt: skip
