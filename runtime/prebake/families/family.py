"""The `Family` interface: how models of one framework are built and equipped, and the function that finds a family.

A family knows a framework; it knows nothing about tiers, threads or weights files. `prebake.tiers.loader` calls it in
this order::

    without_torch              modules to import first, in parallel with other models' construction
    prepare(baked)             imports the framework
        … tensors are mapped; the module is restored from its structure with these tensors …
    adopt(module)              repeats what the constructors do outside the module
    equip(baked, module)       makes the processor, tokenizer or reader

    skeleton(baked) → module   without a structure: the module on the meta device; then tensors are assigned
    ordinary(baked) → module   instead of both: the framework's own loader on the same folder
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from prebake.baked.model import BakedModel
from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

NAMES = ("transformers", "easyocr", "torch")


class Family(Protocol):
    """One framework. Implementations keep no state; one instance serves all threads."""

    packages: tuple[str, ...]
    """Packages whose classes a structure may reference; their versions must match the bake's. Empty: no structures."""

    modules: str
    """Regular expression: the modules of these packages, besides `torch.nn.modules`, whose classes a structure may
    reference. It must match the full name; other modules are not imported."""

    without_torch: tuple[str, ...]
    """Modules that `prepare` needs, and that neither need torch nor patch anything: safe to import in any thread."""

    def prepare(self, baked: BakedModel) -> None:
        """Check the manifest's class and options, and import what the other steps need. May run in any thread.

        Raises ConfigError or DocumentError, before importing it, if the manifest references something it must not.
        """

    def vocabulary(self) -> tuple[object, ...]:
        """What a structure may reference besides modules: classes, including their subclasses, and functions."""

    def adopt(self, module: nn.Module) -> None:
        """For a module restored from its structure, repeat what its constructors do outside the module."""

    def skeleton(self, baked: BakedModel) -> nn.Module:
        """The module in evaluation mode with parameters on the meta device; the caller holds the framework lock."""

    def ordinary(self, baked: BakedModel) -> nn.Module:
        """The module as the framework's own loader loads it from the folder."""

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        """The objects used with the module: `processor`, `reader`. The module's tensors are already set."""


def family_of(name: str, where: str, allow: Sequence[str] = ()) -> Family:
    """The implementation of a family; `allow` lists the Python modules whose code models of family torch may use.

    Raises ConfigError for an unknown family.
    """
    if name == "transformers":
        from prebake.families.transformers import TransformersFamily

        return TransformersFamily()
    if name == "easyocr":
        from prebake.families.easyocr import EasyOcrFamily

        return EasyOcrFamily()
    if name == "torch":
        from prebake.families.torch_module import TorchFamily

        return TorchFamily(allow)
    raise ConfigError(f"{where}: {quote(name)} is not one of {', '.join(NAMES)}{nearest(name, NAMES)}")
