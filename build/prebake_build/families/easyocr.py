"""EasyOCR's detector and recogniser, from the archives that EasyOCR downloads."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.documents.table import Table
from prebake.errors import SourceError
from prebake_build.families.family import BuildFamily, Ordinary, Recipe
from prebake_build.sources.archives import extract

if TYPE_CHECKING:
    from prebake_build.families.state_dicts import StateDict


class EasyOcrBuild(BuildFamily):
    example = "easyocr:Reader"
    pattern = re.compile(r"Reader")
    keys = ("quantize",)
    dtypes = ("float32", "source")
    no_inputs = "has two networks and no forward for inputs"

    def options(self, table: Table) -> Mapping[str, Any]:
        """`quantize`: whether to quantise dynamically, upstream's default on a CPU."""
        return {"quantize": table.take("quantize", bool, True)}

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        from prebake.families.easyocr import networks
        from prebake_build.families.state_dicts import fill, read_state_dict
        from prebake_build.upstream.easyocr import archive_members, recognizer_of

        languages = tuple(recipe.options["languages"])
        states: dict[str, StateDict] = {}
        with tempfile.TemporaryDirectory() as scratch:
            for archive in archive_members(languages).values():
                # the zips match the lock's hashes, and their members matched EasyOCR's md5 when they were locked
                member = extract(checkpoint / archive.name, archive.member, Path(scratch), md5=None)
                part = "detector" if archive.name.startswith("craft") else "recognizer"
                states[part] = _strip_module(read_state_dict(member, f"models.{recipe.name}"))
        if "Prediction.bias" not in states["recognizer"]:
            raise SourceError(f"models.{recipe.name}: lacks Prediction.bias: this is not a recogniser of EasyOCR")
        options = {
            "languages": list(languages),
            "quantize": bool(recipe.options["quantize"]),
            "recognizer": {
                "generation": int(recognizer_of(languages).rpartition("_g")[2]),
                "classes": int(states["recognizer"]["Prediction.bias"].shape[0]),
            },
        }
        module: Any = networks(options)
        for part, state in states.items():
            fill(getattr(module, part), state, f"models.{recipe.name}: {part}")
        packages = ("torch", "torchvision", "easyocr")
        return Ordinary(module=module.eval(), class_="Reader", options=options, requires=packages)


def _strip_module(state: StateDict) -> StateDict:
    """The state dict without the prefix `module.` of `torch.nn.DataParallel`."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}
