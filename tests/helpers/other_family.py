"""A family from a distribution of its own: one scale and one text file, as its author would write it.

`install` puts this module behind the entry point of a .dist-info folder, as pip would.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.documents.table import Table
from prebake.errors import ConfigError, SourceError
from prebake_build.families.family import BuildFamily, Ordinary, Recipe

if TYPE_CHECKING:
    from torch import nn

    from prebake.baked.model import BakedModel


class ScaleFamily:
    install = "scale-models"
    build = "helpers.other_family:ScaleBuild"
    packages: tuple[str, ...] = ()
    modules = ""
    without_torch: tuple[str, ...] = ()

    def __init__(self, allow: Sequence[str] = ()) -> None:
        pass

    def prepare(self, baked: BakedModel) -> None:
        options = Table(baked.manifest.options, f"{baked.folder}: options")
        options.take("size", int)
        options.finish()
        import torch  # noqa: F401

    def vocabulary(self) -> tuple[object, ...]:
        return ()

    def adopt(self, module: nn.Module) -> None:
        pass

    def skeleton(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.skeleton import without_values

        return without_values(lambda: scale(baked.manifest.options["size"])).eval()

    def ordinary(self, baked: BakedModel) -> nn.Module:
        from prebake.weights.tensors import read_tensors

        module = scale(baked.manifest.options["size"])
        module.load_state_dict(read_tensors(baked.folder / "model.safetensors"))
        return module.eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        return {"unit": (baked.folder / "unit.txt").read_text()}


class ScaleBuild(BuildFamily):
    example = "scale:Scale"
    pattern = re.compile("Scale")
    keys = ("size",)

    def options(self, table: Table) -> Mapping[str, Any]:
        if (size := table.take("size", int)) < 1:
            raise table.fail("size", f"{size} is not above 0")
        return {"size": size}

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        numbers = [float(line) for line in (checkpoint / "scale.csv").read_text().split()]
        size = recipe.options["size"]
        if len(numbers) != size:
            raise SourceError(f"models.{recipe.name}: scale.csv has {len(numbers)} numbers, expected {size}")
        module = scale(size)
        module.load_state_dict({"weight": torch.tensor(numbers)})
        return Ordinary(module=module.eval(), class_="Scale", options={"size": size}, keep=("unit.txt",))


class Incomplete:
    """A family whose author stopped early."""

    install = "scale-models"

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        raise ConfigError("never called")


def scale(size: int) -> nn.Module:
    import torch
    from torch import nn

    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.empty(size))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight

    return Scale()


def install(folder: Path, distribution: str = "scale-models", **entries: str) -> None:
    """The metadata of an installed distribution; `entries` are entry points of the group `prebake.families`."""
    info = folder / f"{distribution.replace('-', '_')}-1.5.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: 1.5\n")
    lines = [f"{name} = {value}\n" for name, value in entries.items()]
    (info / "entry_points.txt").write_text("[prebake.families]\n" + "".join(lines))
