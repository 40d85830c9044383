"""How each kind of model is built and equipped: the `Family` interface and its one dispatch.

A family knows a framework; it knows nothing of tiers, threads or files of weights. `prebake.tiers.loader`
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
    """Regular expression: the modules of these packages, beside `torch.nn.modules`, whose classes a structure may
    reference. What does not match as a whole is not imported."""

    without_torch: tuple[str, ...]
    """Modules that `prepare` imports anyhow, that need no torch and patch nothing: any thread may import them first."""

    def prepare(self, baked: BakedModel) -> None:
        """Check what the manifest names and import what the other steps need. May run in any thread, beside file reads.

        Raises ConfigError or DocumentError where the manifest names what it must not, before that is imported.
        """

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


def family_of(name: str, where: str, allow: Sequence[str] = ()) -> Family:
    """The implementation of a family; `allow` lists the modules whose code a manifest of family torch may name.

    Raises ConfigError for a name that is not known.
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
