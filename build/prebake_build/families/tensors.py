"""A file of tensors, baked so that the runtime returns what `torch.load(file, weights_only=True)` returns."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prebake.documents.table import Table
from prebake.errors import IntegrityError
from prebake.families.tensors import CLASS, NAME
from prebake_build.families.family import BuildFamily, Ordinary, Recipe, declared_files
from prebake_build.families.files import file_option, weights_files
from prebake_build.sources.selection import ANY, Wanted


class TensorsBuild(BuildFamily):
    example = "tensors"
    pattern = re.compile("")
    keys = ("file",)
    no_inputs = "has no network and no forward"

    def options(self, table: Table) -> Mapping[str, Any]:
        """`file`: which file of the checkpoint, where it has several."""
        return file_option(table, several=False)

    def hub(self, options: Mapping[str, Any]) -> Wanted:
        return Wanted(weights=ANY, files=declared_files(options))

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        from prebake.modules.saved_object import FILE, SavedObject, Shape
        from prebake_build.families.saved_objects import describe, difference
        from prebake_build.families.state_dicts import cast, read_checkpoint

        where = f"models.{recipe.name}"
        ((_, path),) = weights_files(checkpoint, recipe.options.get("file"), where, several=False)
        found = read_checkpoint(path, where)
        described = describe(found, f"{where}: {path.name}")
        module = SavedObject(Shape(described.shape), described.tensors).eval()
        if differing := difference(found, module.object()):
            raise IntegrityError(f"{where}: {path.name}: described and read back, it differs in {differing}")
        if recipe.dtype != "source":
            module = SavedObject(Shape(described.shape), cast(described.tensors, getattr(torch, recipe.dtype))).eval()
        # which file it was: the runtime answers for `torch.load` of this file, and of no other file of the folder
        options = {NAME: path.relative_to(checkpoint).as_posix()}
        return Ordinary(module=module, class_=CLASS, options=options, texts={FILE: described.text})
