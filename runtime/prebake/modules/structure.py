"""A module's structure, read back in place of running its constructor.

Constructors cost most of a mapped load: transformers' read and copy configurations, expand patterns, fill layers.
What they arrive at depends on the configuration and on the version of the code alone. So baking writes down what
the constructor made, and a process that has the same versions reads that, with the mapped tensors in it.

`structure.json` is data, and reading it runs no code that it names: each object is made bare, of a class that is a
module or a configuration of the family's own packages, and then gets its attributes. Only modules of a few known names
are imported for it: importing is running, whatever is found in the module afterwards::

    classes   "torch.nn.modules.linear:Linear", …
    objects   [class, attributes that JSON can hold, others, whether by __setstate__], …; the first is the module

Others are lists of a tag and what belongs to it, `["tensor", "decoder.weight", true, true]` for instance; `_Reader`
has them all. Attributes that a bare `nn.Module` has too are left out.
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
    """What of a family decides which classes and functions a structure may name."""

    @property
    def packages(self) -> tuple[str, ...]:
        """Packages whose classes a structure may reference; their versions must match the bake's."""

    @property
    def modules(self) -> str:
        """Regular expression: the modules of these packages, beside `torch.nn.modules`, with such classes."""

    def vocabulary(self) -> tuple[object, ...]:
        """What a structure may name beside modules: classes, which stand for their subclasses too, and functions."""

    def adopt(self, module: nn.Module) -> None:
        """Do for a module that was read from its structure what its constructors do beyond the module itself."""


_ACTIVATIONS = {f"torch.nn.functional:{name}": getattr(nn.functional, name) for name in ("gelu", "relu", "silu")}
"""What modules of any family may keep as a plain function."""

_TORCH = re.compile(r"torch\.nn\.modules\.[a-z]\w*", re.ASCII)


def functions_of(family: Vocabulary) -> dict[str, Any]:
    """Name → function, of all that a structure may name."""
    named = {spelled(value): value for value in family.vocabulary() if not isinstance(value, type)}
    return _ACTIVATIONS | named


def bases_of(family: Vocabulary) -> tuple[type, ...]:
    """What the classes that a structure may name are derived from."""
    return (nn.Module, enum.Enum, *(value for value in family.vocabulary() if isinstance(value, type)))


def may_import(module: str, family: Vocabulary) -> bool:
    """Whether a structure may name classes of the module, by the module's name alone.

    Of torch only `torch.nn.modules`: elsewhere are modules that compile what their attributes hold.
    """
    return bool(_TORCH.fullmatch(module) or re.fullmatch(family.modules, module, re.ASCII))


def is_allowed(found: Any, bases: tuple[type, ...], family: Vocabulary) -> bool:
    """Whether a structure may make objects of it: a module, configuration or enumeration, made in the usual way."""
    if not isinstance(found, type) or not issubclass(found, bases) or not may_import(found.__module__, family):
        return False
    return issubclass(found, enum.Enum) or found.__new__ is object.__new__


def spelled(found: Any) -> str:
    """The name by which a class or function is written down."""
    return f"{found.__module__}:{found.__qualname__}"


def bare_state() -> dict[str, Any]:
    """The attributes of an `nn.Module` that has nothing, new at each call."""
    return {name: make() for name, make in _BARE}


def _maker(value: object) -> Callable[[], Any]:
    return type(value) if isinstance(value, (dict, set)) else lambda: value


_BARE = [(name, _maker(value)) for name, value in vars(nn.Module()).items()]


class _Reader:
    """One structure as it is read. Methods named `_read_TAG` take what follows the tag."""

    def __init__(self, baked: BakedModel, tensors: Mapping[str, torch.Tensor], family: Vocabulary) -> None:
        self._family, self._bases, self._functions = family, bases_of(family), functions_of(family)
        self._folder, self._aliases = str(baked.folder), baked.manifest.weights.aliases
        self._tensors = tensors
        self._placed: dict[str, torch.Tensor] = {}
        self._parameters: dict[str, nn.Parameter] = {}
        self.used: set[str] = set()

    def read(self, document: Any) -> Any:
        """The first object, when all are made and have their attributes."""
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
            for part in path.split("."):  # not getattr: some modules import what they are asked for
                found = vars(found).get(part) if isinstance(found, (type, ModuleType)) else None
            if is_allowed(found, self._bases, self._family) and spelled(found) == name:
                return found
        raise LoadError(f"wants {name}, which no structure may name")

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
            raise LoadError(f"wants {name}, which no structure may name")
        return self._functions[name]

    def _read_partial(self, name: str, *arguments: Any) -> Any:
        positional, named = self._each(arguments)
        return functools.partial(self._read_function(name), *positional, **named)

    def _read_folder(self) -> str:
        return self._folder

    def _read_dtype(self, name: str) -> torch.dtype:
        found = vars(torch).get(name)
        if not isinstance(found, torch.dtype):
            raise LoadError(f"{name} is no type of tensors")
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
        raise LoadError(f"wants {module}, and importing it ended with {error!r}") from error


def restore(baked: BakedModel, tensors: Mapping[str, torch.Tensor], family: Vocabulary) -> nn.Module:
    """The module in evaluation mode, with the tensors in it: parameters, buffers and those in attributes.

    `tensors` are all that was baked, by name. Raises IntegrityError where the file is not what the manifest says, and
    LoadError where it names something that it may not, or does not use every tensor.
    """
    name, data = baked.manifest.structure, _read(baked)
    reader = _Reader(baked, tensors, family)
    try:
        module = reader.read(json.loads(data))
        family.adopt(module)
    except Exception as error:  # of classes that changed under it: whatever it is, the constructor may do
        what = str(error) if isinstance(error, LoadError) else f"{type(error).__name__}: {error}"
        raise LoadError(f"{name}: {what[:200]}") from error
    if not isinstance(module, nn.Module):
        raise LoadError(f"{name}: holds no module")
    if unused := sorted(tensors.keys() - reader.used):
        raise LoadError(f"{name}: leaves {len(unused)} tensors unused, {unused[0]} first")
    return module


def _read(baked: BakedModel) -> bytes:
    path = baked.folder / str(baked.manifest.structure)
    (expected,) = (file.sha256 for file in baked.manifest.files if file.path == baked.manifest.structure)
    try:
        data = path.read_bytes()
    except OSError as error:
        raise IntegrityError(f"{path}: {reason(error)}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise IntegrityError(f"{path}: its sha256 is not the manifest's")
    return data


def why_not(baked: BakedModel, family: Vocabulary) -> str | None:
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
