"""Records the structure of a loaded module: the result of its constructor, as data (`prebake.modules.structure`).

The module is the one that the runtime's own loader built, so restoring the structure gives the same result as that
loader. Not every module has a structure: weight norms create classes at run time, and some models have closures or
functions as attributes. Such modules are constructed at each start.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import sys
from collections import OrderedDict
from typing import Any

import torch
from torch import nn

from prebake.baked import layout
from prebake.baked.header import read_header
from prebake.baked.model import BakedModel
from prebake.errors import LoadError
from prebake.families.family import Family, family_of
from prebake.families.transformers import HASH
from prebake.modules.assembly import identity_of, slots
from prebake.modules.structure import bare_state, bases_of, functions_of, is_allowed, restore, spelled
from prebake_build.files.atomic import write_text
from prebake_build.files.digest import file_of

_SCALARS = (bool, int, float, str, type(None))
_CUSTOM = ("__reduce__", "__reduce_ex__", "__getnewargs__", "__getnewargs_ex__")
"""If a class defines one of these, its objects can't be recreated from their attributes alone."""


def _custom(cls: type) -> list[str]:
    """The names of these, or of slots with contents (`abc.ABC` has empty ones), that the class defines."""
    custom = [name for name in _CUSTOM if getattr(cls, name, None) is not getattr(object, name, None)]
    return custom or ["__slots__"] * any(vars(base).get("__slots__") for base in cls.__mro__)


class NoStructureError(Exception):
    """The module can't have a structure; the message gives the reason."""


class _Writer:
    def __init__(self, module: nn.Module, baked: BakedModel, family: Family) -> None:
        self._family, self._bases, self._folder = family, bases_of(family), str(baked.folder)
        self._functions = {id(found): name for name, found in functions_of(family).items()}
        self._classes: dict[type, int] = {}
        self._numbers: dict[int, int] = {}
        self._waiting: list[Any] = []
        self._keys: dict[int, str] = {}
        stored = names_of(baked) | baked.manifest.weights.aliases.keys()
        for slot in slots(module):
            if slot.kind == "extra":
                raise NoStructureError(f"{slot.key} is extra state")
            if slot.key in stored:
                self._keys.setdefault(id(slot.tensor), slot.key)

    def document(self, module: nn.Module) -> dict[str, Any]:
        self._object(module)
        objects = [self._state(found) for found in self._waiting]  # the list grows during the loop
        return {"classes": [spelled(found) for found in self._classes], "objects": objects}

    def _object(self, value: Any) -> list[Any]:
        if id(value) not in self._numbers:
            self._numbers[id(value)] = len(self._waiting)
            self._waiting.append(value)
        return ["object", self._numbers[id(value)]]

    def _state(self, found: Any) -> list[Any]:
        cls = type(found)
        if custom := _custom(cls):
            raise NoStructureError(f"{spelled(cls)} defines its own {custom[0]}")
        usual = (getattr(object, "__getstate__", None), getattr(nn.Module, "__getstate__", None))
        own_state = getattr(cls, "__getstate__", None)
        state = vars(found) if own_state in usual else found.__getstate__()
        setstate = getattr(cls, "__setstate__", None)
        by_setstate = setstate is not None and setstate is not nn.Module.__setstate__
        bare = bare_state() if isinstance(found, nn.Module) else {}
        if missing := bare.keys() - state.keys():
            raise NoStructureError(f"{spelled(cls)} lacks {sorted(missing)[0]}")
        plain, others = {}, {}
        for name, value in sorted(state.items()):
            if name in bare and type(value) is type(bare[name]) and value == bare[name]:
                continue
            if name == HASH:  # differs between processes; None means that the configuration was changed
                value = 0 if value == hash(found) else None
            if _is_plain(value) and value != self._folder:
                plain[name] = value
            else:
                others[name] = self._value(value)
        return [self._class(cls), plain, others, by_setstate]

    def _class(self, found: type) -> int:
        if not is_allowed(found, self._bases, self._family) or "<locals>" in found.__qualname__:
            raise NoStructureError(f"it contains a {spelled(found)}")
        return self._classes.setdefault(found, len(self._classes))

    def _value(self, value: Any) -> Any:
        """A scalar unchanged, or a list of a tag and its arguments."""
        if isinstance(value, torch.Tensor):
            if id(value) not in self._keys:
                raise NoStructureError("it contains a tensor that was not baked")
            return ["tensor", self._keys[id(value)], isinstance(value, nn.Parameter), value.requires_grad]
        if type(value) in _SCALARS:
            return ["folder"] if value == self._folder else value
        if type(value) in _CONTAINERS:
            tag, items = _CONTAINERS[type(value)](value)
            return [tag, *(self._value(item) if tag in _FLAT else [*map(self._value, item)] for item in items)]
        if id(value) in self._functions:
            return ["function", self._functions[id(value)]]
        if isinstance(value, enum.Enum):
            return ["member", self._class(type(value)), value.name]
        if isinstance(value, type):
            return ["class", self._class(value)]
        if type(value) is functools.partial and id(value.func) in self._functions:
            return ["partial", self._functions[id(value.func)], self._value(value.args), self._value(value.keywords)]
        self._class(type(value))
        return self._object(value)


_FLAT = ("list", "tuple", "set", "size", "dtype", "device")
_CONTAINERS: dict[type, Any] = {
    list: lambda value: ("list", value),
    tuple: lambda value: ("tuple", value),
    set: lambda value: ("set", sorted(value, key=repr)),
    dict: lambda value: ("dict", value.items()),
    OrderedDict: lambda value: ("ordered", value.items()),
    torch.Size: lambda value: ("size", value),
    torch.dtype: lambda value: ("dtype", [str(value).removeprefix("torch.")]),
    torch.device: lambda value: ("device", [str(value)]),
}  # fmt: skip
"""Type → tag and items; the items are pairs unless the tag is in `_FLAT`."""


def _is_plain(value: Any) -> bool:
    """Whether the value survives a round trip through JSON."""
    if type(value) is list:
        return all(_is_plain(item) for item in value)
    if type(value) is dict:
        return all(type(name) is str and _is_plain(item) for name, item in value.items())
    return type(value) in _SCALARS


def names_of(baked: BakedModel) -> set[str]:
    """The keys of the tensors that were baked."""
    return {baked.prefix(path) + name for path in baked.weights for name in read_header(path).entries}


def structure_of(module: nn.Module, baked: BakedModel) -> str:
    """The structure of a module that was loaded from the folder. Raises NoStructureError."""
    try:
        document = _Writer(module, baked, family_of(baked.manifest.family, baked.name)).document(module)
    except NoStructureError:
        raise
    except Exception as error:  # a module's own __getstate__ may raise any exception
        raise NoStructureError(" ".join(str(error).split())[:200]) from error
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False) + "\n"
    if str(baked.folder) in text:  # the folder has another path at run time
        raise NoStructureError("it contains a path inside its folder")
    return text


def add_structure(module: nn.Module, baked: BakedModel) -> None:
    """Write the structure of a module that was mapped from the folder, and add it to the manifest.

    The structure is kept only if it restores to the same module; otherwise prints a warning and leaves the folder as it
    was.
    """
    family, manifest = family_of(baked.manifest.family, baked.name), baked.manifest
    path = baked.folder / layout.STRUCTURE
    if not family.packages:
        return
    try:
        write_text(path, structure_of(module, baked), new=True)
        files = sorted((*manifest.files, file_of(baked.folder, layout.STRUCTURE)), key=lambda file: file.path)
        manifest = dataclasses.replace(manifest, structure=layout.STRUCTURE, files=tuple(files))
        _check(module, BakedModel(baked.folder, manifest), family)
    except (NoStructureError, LoadError) as error:
        path.unlink(missing_ok=True)
        print(f"{baked.name}: every start will run its constructor: {error}", file=sys.stderr)
        return
    write_text(baked.folder / layout.MANIFEST, manifest.text)


def _check(module: nn.Module, baked: BakedModel, family: Family) -> None:
    """Restore the structure as the runtime does, with the module's own tensors, and compare it with the module.

    Every part must have the same class, attributes and tensors; and the structure of the result must be the same text.
    Raises NoStructureError, LoadError.
    """
    names = names_of(baked)
    restored = restore(baked, {slot.key: slot.tensor.detach() for slot in slots(module) if slot.key in names}, family)
    expected, found = _parts(module), _parts(restored)
    if differing := [path for path in {**expected, **found} if expected.get(path) != found.get(path)]:
        raise NoStructureError(f"read back, it differs in {differing[0] or 'the model itself'}")
    if structure_of(restored, baked) != (baked.folder / layout.STRUCTURE).read_text(encoding="utf-8"):
        raise NoStructureError("read back, its attributes differ")


def _parts(module: nn.Module) -> dict[str, object]:
    parts: dict[str, object] = {
        path: (type(part), sorted(vars(part)), part.training)
        for path, part in module.named_modules(remove_duplicate=False)
    }
    held = {slot.key: (*identity_of(slot.tensor), slot.kind, slot.tensor.requires_grad) for slot in slots(module)}
    return {**parts, **{f"tensor {key}": identity for key, identity in held.items()}}
