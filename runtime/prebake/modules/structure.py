"""Restores a module from its recorded structure instead of running its constructor.

Constructors take most of the time of a mapped load: those of transformers read and copy configurations, expand patterns
and fill layers. Their result depends only on the configuration and the version of the code. So the bake records what
the constructor made, and a process with the same versions restores that, with the mapped tensors in it.

`structure.json` is data, and reading it runs no code that it references: each object is created without its
constructor, from a class that is a module or a configuration of the family's own packages, and then gets its
attributes. Only Python modules whose names match the family's pattern are imported, because importing a module already
runs its code::

    classes   "torch.nn.modules.linear:Linear", …
    objects   [class, attributes as JSON, other attributes, whether by __setstate__], …; the first is the module

Other attributes are lists of a tag and its arguments, for example `["tensor", "decoder.weight", true, true]`; `_Reader`
has all tags. Attributes that every bare `nn.Module` has are left out.
"""

from __future__ import annotations

import enum
import functools
import hashlib
import importlib
import json
import re
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, version
from types import ModuleType
from typing import Any, Protocol

import torch
from torch import nn

from prebake.baked.model import BakedModel
from prebake.documents.messages import reason
from prebake.errors import IntegrityError, LoadError
from prebake.weights.tensors import aligned


class Vocabulary(Protocol):
    """The part of a family that decides which classes and functions a structure may reference."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages whose classes a structure may reference; their versions must match the bake's."""

    @property
    def modules(self) -> str:
        """Regular expression: the modules of these packages, besides `torch.nn.modules`, with such classes."""

    def vocabulary(self) -> tuple[object, ...]:
        """What a structure may reference besides modules: classes, including their subclasses, and functions."""

    def adopt(self, module: nn.Module) -> None:
        """For a module restored from its structure, repeat what its constructors do outside the module."""


_ACTIVATIONS = {f"torch.nn.functional:{name}": getattr(nn.functional, name) for name in ("gelu", "relu", "silu")}
"""Functions that modules of any family may have as attributes."""

_TORCH = re.compile(r"torch\.nn\.modules\.[a-z]\w*", re.ASCII)


def functions_of(family: Vocabulary) -> dict[str, Any]:
    """Name → function, for all functions that a structure may reference."""
    named = {spelled(value): value for value in family.vocabulary() if not isinstance(value, type)}
    return _ACTIVATIONS | named


def bases_of(family: Vocabulary) -> tuple[type, ...]:
    """Base classes of the classes that a structure may reference."""
    return (nn.Module, enum.Enum, *(value for value in family.vocabulary() if isinstance(value, type)))


def may_import(module: str, family: Vocabulary) -> bool:
    """Whether a structure may reference classes of this Python module, decided by the module's name alone.

    In torch only `torch.nn.modules`: other parts have modules that compile code from their attributes.
    """
    return bool(_TORCH.fullmatch(module) or re.fullmatch(family.modules, module, re.ASCII))


def is_allowed(found: Any, bases: tuple[type, ...], family: Vocabulary) -> bool:
    """Whether a structure may create objects of it: a module, configuration or enumeration without its own
    `__new__`."""
    if not isinstance(found, type) or not issubclass(found, bases) or not may_import(found.__module__, family):
        return False
    return issubclass(found, enum.Enum) or found.__new__ is object.__new__


def spelled(found: Any) -> str:
    """The name of a class or function as a structure records it."""
    return f"{found.__module__}:{found.__qualname__}"


def bare_state() -> dict[str, Any]:
    """The attributes of an empty `nn.Module`, new at each call."""
    return {name: make() for name, make in _BARE}


def _maker(value: object) -> Callable[[], Any]:
    return type(value) if isinstance(value, (dict, set)) else lambda: value


_BARE = [(name, _maker(value)) for name, value in vars(nn.Module()).items()]


class _Reader:
    """Reads one structure. Methods named `_read_TAG` take the arguments that follow the tag."""

    def __init__(self, baked: BakedModel, tensors: Mapping[str, torch.Tensor], family: Vocabulary) -> None:
        self._family, self._bases, self._functions = family, bases_of(family), functions_of(family)
        self._folder, self._aliases = str(baked.folder), baked.manifest.weights.aliases
        self._tensors = tensors
        self._placed: dict[str, torch.Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.used: set[str] = set()

    def read(self, document: Any) -> Any:
        """Create all objects, set their attributes, and return the first."""
        self._classes = [self._class(name) for name in document["classes"]]
        objects = document["objects"]
        self._objects = [object.__new__(self._classes[number]) for number, *_ in objects]
        for made, (_, plain, others, by_setstate) in zip(self._objects, objects, strict=True):
            state = bare_state() if isinstance(made, nn.Module) else {}
            state.update(plain)
            for name, value in others.items():
                state[name] = self._value(value)
            if by_setstate:
                made.__setstate__(state)
            else:
                vars(made).update(state)
        return self._objects[0]

    def _class(self, name: str) -> Any:
        module, _, path = name.partition(":")
        if may_import(module, self._family):
            found: Any = _imported(module)
            for part in path.split("."):  # not getattr: some modules import on attribute access
                found = vars(found).get(part) if isinstance(found, (type, ModuleType)) else None
            if is_allowed(found, self._bases, self._family) and spelled(found) == name:
                return found
        raise LoadError(f"references {name}, which is not allowed in a structure")

    def _value(self, value: Any) -> Any:
        if isinstance(value, list):
            return getattr(self, f"_read_{value[0]}")(*value[1:])
        return value

    def _each(self, values: tuple[Any, ...]) -> list[Any]:
        return [self._value(value) for value in values]

    def _read_tensor(self, name: str, is_parameter: bool, requires_grad: bool) -> torch.Tensor:
        name = self._aliases.get(name, name)
        self.used.add(name)
        if name not in self._placed:
            self._placed[name] = aligned(self._tensors[name])
        if not is_parameter:
            return self._placed[name]
        if name not in self._parameters:
            self._parameters[name] = nn.Parameter(self._placed[name], requires_grad)
        return self._parameters[name]

    def _read_object(self, number: int) -> Any:
        return self._objects[number]

    def _read_class(self, number: int) -> Any:
        return self._classes[number]

    def _read_member(self, number: int, name: str) -> Any:
        return self._classes[number].__members__[name]

    def _read_function(self, name: str) -> Any:
        if name not in self._functions:
            raise LoadError(f"references {name}, which is not allowed in a structure")
        return self._functions[name]

    def _read_partial(self, name: str, *arguments: Any) -> Any:
        positional, named = self._each(arguments)
        return functools.partial(self._read_function(name), *positional, **named)

    def _read_folder(self) -> str:
        return self._folder

    def _read_dtype(self, name: str) -> torch.dtype:
        found = vars(torch).get(name)
        if not isinstance(found, torch.dtype):
            raise LoadError(f"{name} is not a torch dtype")
        return found

    def _read_device(self, name: str) -> torch.device:
        return torch.device(name)

    def _read_size(self, *sizes: int) -> torch.Size:
        return torch.Size(sizes)

    def _read_list(self, *values: Any) -> list[Any]:
        return self._each(values)

    def _read_tuple(self, *values: Any) -> tuple[Any, ...]:
        return tuple(self._each(values))

    def _read_set(self, *values: Any) -> set[Any]:
        return set(self._each(values))

    def _read_dict(self, *pairs: Any) -> dict[Any, Any]:
        return {self._value(name): self._value(value) for name, value in pairs}

    def _read_ordered(self, *pairs: Any) -> OrderedDict[Any, Any]:
        return OrderedDict(self._read_dict(*pairs))


def _imported(module: str) -> ModuleType:
    try:
        return sys.modules.get(module) or importlib.import_module(module)
    except SystemExit as error:
        raise LoadError(f"references {module}, whose import raised {error!r}") from error


def restore(baked: BakedModel, tensors: Mapping[str, torch.Tensor], family: Vocabulary) -> nn.Module:
    """The module in evaluation mode with its tensors: parameters, buffers and those in attributes.

    `tensors` holds all baked tensors by name. Raises IntegrityError if the file does not match the manifest, and
    LoadError if it references something that is not allowed, or does not use every tensor.
    """
    name, data = baked.manifest.structure, _read(baked)
    reader = _Reader(baked, tensors, family)
    try:
        module = reader.read(json.loads(data))
        family.adopt(module)
    except Exception as error:  # the classes may have changed: the constructor may still work
        what = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
        raise LoadError(f"{name}: {what[:200]}") from error
    if not isinstance(module, nn.Module):
        raise LoadError(f"{name}: its first object is not a module")
    if unused := sorted(tensors.keys() - reader.used):
        raise LoadError(f"{name}: does not use {len(unused)} tensors, such as {unused[0]}")
    return module


def _read(baked: BakedModel) -> bytes:
    path = baked.folder / str(baked.manifest.structure)
    (expected,) = (file.sha256 for file in baked.manifest.files if file.path == baked.manifest.structure)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: {reason(error)}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise IntegrityError(f"{path}: its sha256 differs from the manifest's")
    return data


def why_not(baked: BakedModel, family: Vocabulary) -> str | None:
    """Why the structure can't be used, or None if it can: its packages have the bake's versions."""
    if not family.packages:
        return f"a structure needs a code version to check, and {baked.manifest.class_} has none"
    if baked.manifest.structure is None:
        return "baked without a structure"
    for package in family.packages:
        wanted, found = baked.manifest.requires.get(package), installed(package)
        if wanted != found:
            return f"its structure was made with {package} {wanted}, but {found} is installed"
    return None


def installed(package: str) -> str | None:
    """The package's version without the local part (`+cpu`), from the imported package if it is imported."""
    found = getattr(sys.modules.get(package), "__version__", None)
    try:
        return str(found or version(package)).partition("+")[0]
    except PackageNotFoundError:
        return None
