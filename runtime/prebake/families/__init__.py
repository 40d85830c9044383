"""How each kind of model is built and equipped: the `Family` interface and its one dispatch.

A family knows a framework; it knows nothing of tiers, threads or files of weights. `prebake.loader`
calls it in this order::

    without_torch              imported first, beside others' construction
    prepare(baked)             the framework's imports
        … tensors are mapped; the module is read from its structure, with them in it …
    adopt(module)              what its constructors would have done beyond it
    equip(baked, module)       processor, tokenizer, reader: what a user needs beside the module

    skeleton(baked) → module   without a structure: the module on the meta device, then tensors are assigned
    ordinary(baked) → module   instead of both: the framework's own loader on the same folder
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from prebake import layout
from prebake.documents import nearest, quote
from prebake.errors import ConfigError
from prebake.manifest import Manifest

if TYPE_CHECKING:
    from torch import nn

NAMES = ("transformers", "easyocr", "torch")


@dataclass(frozen=True, slots=True)
class BakedModel:
    """A model folder and what its manifest says."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> BakedModel:
        """Raises DocumentError where the folder holds no readable manifest."""
        return cls(folder, Manifest.read(folder))

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files of tensors."""
        return tuple(self.folder / file for file in self.manifest.weights.all_files)


def find_models(root: Path) -> list[BakedModel]:
    """Every model folder under the root, sorted by name.

    Raises ConfigError where the root does not exist, holds no model, or a folder's name differs from its
    manifest's; DocumentError where a manifest cannot be read or a folder has none.
    """
    if not root.is_dir():
        raise ConfigError(
            f"{root}: there is no such folder (expected the root of baked models; set {layout.ENV_ROOT} or --root)"
        )
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    models = [BakedModel.open(folder) for folder in folders]
    for baked in models:
        if baked.name != baked.folder.name:
            raise ConfigError(f"{baked.folder}: its manifest is that of the model {quote(baked.name)}")
    if not models:
        raise ConfigError(f"{root}: holds no baked model (run: prebake bake --output {root})")
    return models


class Family(Protocol):
    """One framework. Implementations are stateless modules' classes; one instance serves all threads."""

    packages: tuple[str, ...]
    """Whose classes a structure may name, and whose versions must be those of the bake. None: it is never used."""

    without_torch: tuple[str, ...]
    """Modules that `prepare` imports anyhow, that need no torch and patch nothing: any thread may import them first."""

    def prepare(self, baked: BakedModel) -> None:
        """Import what the other steps need. May run in any thread, beside file reads."""

    def vocabulary(self) -> tuple[object, ...]:
        """What a structure may name beside modules: classes, which stand for their subclasses too, and functions."""

    def adopt(self, module: nn.Module) -> None:
        """Do for a module that was read from its structure what its constructors do beyond the module itself."""

    def skeleton(self, baked: BakedModel) -> nn.Module:
        """The module in evaluation mode, its parameters on the meta device; the caller holds the construction lock."""

    def ordinary(self, baked: BakedModel) -> nn.Module:
        """The module as the framework's own loader brings it up from the folder."""

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        """What belongs to the module: `processor`, `reader`. The module's tensors are in place."""


def family_of(name: str, where: str) -> Family:
    """The implementation of a family. Raises ConfigError for a name that is not known."""
    if name == "transformers":
        from prebake.families.transformers import TransformersFamily

        return TransformersFamily()
    if name == "easyocr":
        from prebake.families.easyocr import EasyOcrFamily

        return EasyOcrFamily()
    if name == "torch":
        from prebake.families.torch_module import TorchFamily

        return TorchFamily()
    raise ConfigError(f"{where}: {quote(name)} is not one of {', '.join(NAMES)}{nearest(name, NAMES)}")
