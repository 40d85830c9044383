"""A module's structure, read back in place of running its constructor.

Constructors cost most of a mapped load: transformers' read and copy configurations, expand patterns, fill layers.
What they arrive at depends on the configuration and on the version of the code alone. So baking pickles the module
that the constructor made, with each tensor replaced by its key, and a process that has the same versions unpickles it
with the mapped tensors in the places of the keys.

A pickle can name any callable, so this reader is restricted, in the way that the library reference of `pickle`
describes ("Restricting Globals"): modules and configurations of the family's own packages, and a short list of
values. Whatever wants more is refused, at bake too, where it means that the model has no structure.
"""

from __future__ import annotations

import enum
import hashlib
import pickle
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from io import BytesIO
from typing import Any

import torch
from torch import nn

from prebake.errors import IntegrityError, LoadError
from prebake.families import BakedModel, Family
from prebake.tensors import aligned

FOLDER = "folder"
"""Stands for the path of the model's folder, wherever the module keeps it."""

TensorKey = tuple[str, bool, bool]
"""Key of a tensor; whether it is a parameter; whether it requires gradients."""

_VALUES = frozenset({
    ("builtins", "set"), ("builtins", "frozenset"), ("builtins", "slice"), ("builtins", "range"),
    ("builtins", "complex"), ("collections", "OrderedDict"), ("functools", "partial"),
    ("torch", "Size"), ("torch", "device"), ("torch._C._nn", "gelu"),
})  # fmt: skip
"""What a structure may name beside classes: nothing here reads, writes or runs what it is given."""


class _Reader(pickle.Unpickler):
    def __init__(self, data: bytes, baked: BakedModel, tensors: Mapping[str, torch.Tensor], family: Family) -> None:
        super().__init__(BytesIO(data))
        self._packages = family.packages
        vocabulary = family.vocabulary()
        self._bases = (nn.Module, enum.Enum, *(value for value in vocabulary if isinstance(value, type)))
        self._functions = [value for value in vocabulary if not isinstance(value, type)]
        self._folder, self._aliases = str(baked.folder), baked.manifest.weights.aliases
        self._tensors = tensors
        self._placed: dict[str, torch.Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.used: set[str] = set()

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _VALUES:
            return super().find_class(module, name)
        if module.partition(".")[0] in self._packages:
            found = super().find_class(module, name)
            if issubclass(found, self._bases) if isinstance(found, type) else self._is_plain(found):
                return found
        raise pickle.UnpicklingError(f"wants {module}.{name}, which no structure may name")

    def _is_plain(self, found: Any) -> bool:
        return isinstance(found, torch.dtype) or any(found is function for function in self._functions)

    def persistent_load(self, key: Any) -> Any:
        if key == FOLDER:
            return self._folder
        name, is_parameter, requires_grad = key
        name = self._aliases.get(name, name)
        self.used.add(name)
        if name not in self._placed:
            self._placed[name] = aligned(self._tensors[name])
        if not is_parameter:
            return self._placed[name]
        if name not in self._parameters:
            self._parameters[name] = nn.Parameter(self._placed[name], requires_grad)
        return self._parameters[name]


def restore(baked: BakedModel, tensors: Mapping[str, torch.Tensor], family: Family) -> nn.Module:
    """The module in evaluation mode, with the tensors in it: parameters, buffers and those in attributes.

    `tensors` are all that was baked, by name. Raises IntegrityError where the file is not what the manifest says, and
    LoadError where it names something that it may not, or does not use every tensor.
    """
    data = _read(baked)
    reader = _Reader(data, baked, tensors, family)
    try:
        module = reader.load()
    except Exception as error:  # of classes that changed under it: whatever it is, the constructor may do
        raise LoadError(f"{baked.manifest.structure}: {type(error).__name__}: {error}") from error
    if not isinstance(module, nn.Module):
        raise LoadError(f"{baked.manifest.structure}: holds no module")
    if unused := sorted(tensors.keys() - reader.used):
        raise LoadError(f"{baked.manifest.structure}: leaves {len(unused)} tensors unused, {unused[0]} first")
    family.adopt(module)
    return module


def _read(baked: BakedModel) -> bytes:
    name = baked.manifest.structure
    (expected,) = (file.sha256 for file in baked.manifest.files if file.path == name)
    data = (baked.folder / str(name)).read_bytes()
    if hashlib.sha256(data).hexdigest() != expected:
        raise IntegrityError(f"{baked.folder / str(name)}: its sha256 is not the manifest's")
    return data


def why_not(baked: BakedModel, family: Family) -> str | None:
    """Why the constructor is needed here, or None where the structure fits: its packages have the bake's versions."""
    if not family.packages:
        return f"a structure is only as good as the version of its code, and {baked.manifest.class_} has none"
    if baked.manifest.structure is None:
        return "baked without a structure"
    for package in family.packages:
        wanted, found = baked.manifest.requires.get(package), installed(package)
        if wanted != found:
            return f"its structure was made with {package} {wanted}, and {found} is installed"
    return None


def installed(package: str) -> str | None:
    """The package's version without a local part (`2.13.0+cpu`), from the imported package where there is one."""
    found = getattr(sys.modules.get(package), "__version__", None)
    try:
        return str(found or version(package)).partition("+")[0]
    except PackageNotFoundError:
        return None
