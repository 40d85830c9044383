"""A loaded module -> its structure: the module pickled, each tensor replaced by its key (`prebake.structure`).

It is made of the module that the runtime's own loader built and assigned, so that reading it gives what that loader
gives. Not every module has one: weight norms are classes made while the program runs, and some models keep closures or
functions. They are constructed at each start, as all were before.
"""

from __future__ import annotations

import dataclasses
import pickle
import sys
from io import BytesIO
from typing import Any

import torch
from torch import nn

from prebake import layout
from prebake.assembly import slots
from prebake.errors import LoadError
from prebake.families import BakedModel, Family, family_of
from prebake.header import read_header
from prebake.structure import FOLDER, TensorKey, restore
from prebake_build.convert import identity_of
from prebake_build.digest import file_of
from prebake_build.writer import write_text

PROTOCOL = 5
"""Of `pickle`; Python 3.8."""


class NoStructureError(Exception):
    """Why a module has none."""


class _Writer(pickle.Pickler):
    def __init__(self, target: BytesIO, module: nn.Module, baked: BakedModel) -> None:
        super().__init__(target, protocol=PROTOCOL)
        self._folder = str(baked.folder)
        stored = names_of(baked)
        self._keys: dict[int, str] = {}
        for slot in slots(module):
            if slot.kind == "extra":
                raise NoStructureError(f"{slot.key} is extra state")
            if slot.key in stored or slot.key in baked.manifest.weights.aliases:
                self._keys.setdefault(id(slot.tensor), slot.key)

    def persistent_id(self, value: Any) -> str | TensorKey | None:
        if type(value) is str and value == self._folder:
            return FOLDER
        if not isinstance(value, torch.Tensor):
            return None
        if id(value) not in self._keys:
            raise NoStructureError("it holds a tensor that was not baked")
        return self._keys[id(value)], isinstance(value, nn.Parameter), value.requires_grad


def names_of(baked: BakedModel) -> set[str]:
    """The keys of the tensors that were baked."""
    return {name for path in baked.weights for name in read_header(path).entries}


def structure_of(module: nn.Module, baked: BakedModel) -> bytes:
    """The structure of a module that was loaded from the folder. Raises NoStructureError."""
    target = BytesIO()
    try:
        _Writer(target, module, baked).dump(module)
    except NoStructureError:
        raise
    except Exception as error:  # whatever a module's own __getstate__ raises
        raise NoStructureError(" ".join(str(error).split())[:200]) from error
    return target.getvalue()


def add_structure(module: nn.Module, baked: BakedModel) -> None:
    """Write the structure of a module that was mapped from the folder, and name it in the manifest.

    Only one that reads back as the same module is kept. Where there is none, that is said, and the folder stays.
    """
    family, manifest, path = (
        family_of(baked.manifest.family, baked.name),
        baked.manifest,
        baked.folder / layout.STRUCTURE,
    )
    if not family.packages:
        return
    try:
        path.write_bytes(structure_of(module, baked))
        files = sorted((*manifest.files, file_of(baked.folder, layout.STRUCTURE)), key=lambda file: file.path)
        manifest = dataclasses.replace(manifest, structure=layout.STRUCTURE, files=tuple(files))
        _check(module, BakedModel(baked.folder, manifest), family)
    except (NoStructureError, LoadError) as error:
        path.unlink(missing_ok=True)
        print(f"{baked.name}: every start will run its constructor: {error}", file=sys.stderr)
        return
    (baked.folder / layout.MANIFEST).unlink()
    write_text(baked.folder / layout.MANIFEST, manifest.text)


def _check(module: nn.Module, baked: BakedModel, family: Family) -> None:
    """Read it back as the runtime does, around the module's own tensors: every part must be of the same class, with
    the same attributes, and hold the same tensors. Raises NoStructureError, LoadError."""
    names = names_of(baked)
    stored = {slot.key: slot.tensor.detach() for slot in slots(module) if slot.key in names}
    expected, found = _parts(module), _parts(restore(baked, stored, family))
    if differing := [path for path in {**expected, **found} if expected.get(path) != found.get(path)]:
        raise NoStructureError(f"read back, it differs in {differing[0] or 'the model itself'}")


def _parts(module: nn.Module) -> dict[str, object]:
    parts: dict[str, object] = {
        path: (type(part), sorted(vars(part)), part.training)
        for path, part in module.named_modules(remove_duplicate=False)
    }
    held = {slot.key: (*identity_of(slot.tensor), slot.kind, slot.tensor.requires_grad) for slot in slots(module)}
    return {**parts, **{f"tensor {key}": identity for key, identity in held.items()}}
