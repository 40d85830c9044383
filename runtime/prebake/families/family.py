"""The `Family` interface: how models of one framework are built and equipped, and the functions that find a family.

Families are open: a distribution adds one by an entry point of the group `prebake.families`, NAME = "module:Class".
docs/families.md has a template. Families in the box are listed here, so that finding one reads no metadata.

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

import sys
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib import import_module
from typing import TYPE_CHECKING, Any, Protocol

from prebake.baked.model import BakedModel
from prebake.documents.messages import nearest, one_line, quote
from prebake.errors import ConfigError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    from torch import nn

GROUP = "prebake.families"
"""Group of entry points: name of the family → `module:Class`."""

IN_THE_BOX = {
    "transformers": "prebake.families.transformers:TransformersFamily",
    "easyocr": "prebake.families.easyocr:EasyOcrFamily",
    "sentence-transformers": "prebake.families.sentence_transformers:SentenceTransformersFamily",
    "diffusers": "prebake.families.diffusers:DiffusersFamily",
    "timm": "prebake.families.timm:TimmFamily",
    "torch": "prebake.families.torch_module:TorchFamily",
    "tensors": "prebake.families.tensors:TensorsFamily",
}
"""Name of a family → its class, as an entry point would name it. An entry point can't replace one of these."""

NAMES = tuple(IN_THE_BOX)


class Family(Protocol):
    """One framework. Implementations keep no state; one instance serves all threads.

    The class is called with `allow`, a tuple of the Python modules whose code a manifest may name (`allowed`).
    Importing its module must import no framework: `prepare` does that.
    """

    install: str
    """What to install for its models, as an argument of pip."""

    build: str
    """`module:Class` of the build's half (`prebake_build.families.family.BuildFamily`), which images lack."""

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
        """The objects used with the module: `processor`, `reader`. The module's tensors are already set.

        An object named `model` becomes `LoadedModel.model` in place of the module.
        """


def family_of(name: str, where: str, allow: Sequence[str] = ()) -> Family:
    """The family of this name; `allow` lists the Python modules whose code its models may use.

    Raises ConfigError for a family that is not installed, or whose class can't be imported.
    """
    family: Family = family_class(name, where)(tuple(allow))
    return family


def family_class(name: str, where: str) -> Any:
    """The class of the family. Raises ConfigError like `family_of`."""
    if name in IN_THE_BOX:
        module, _, class_ = IN_THE_BOX[name].partition(":")
        return getattr(import_module(module), class_)
    return _installed_class(name, where, tuple(sys.path))


def family_names() -> tuple[str, ...]:
    """The families in the box, then those of other distributions, sorted."""
    return (*NAMES, *sorted({entry.name for entry in _entries()} - set(NAMES)))


@lru_cache
def _installed_class(name: str, where: str, path: tuple[str, ...]) -> Any:
    found = [entry for entry in _entries() if entry.name == name]
    if not found:
        known = family_names()
        hint = nearest(name, known) or f" (others come with a package that has an entry point of the group {GROUP})"
        raise ConfigError(f"{where}: {quote(name)} is not an installed family (installed: {', '.join(known)}){hint}")
    providers = sorted(_spelled(entry) for entry in found)
    if len(found) > 1:
        raise ConfigError(
            f"{where}: the family {quote(name)} is provided by {' and by '.join(providers)}: uninstall all but one"
        )
    try:
        class_ = found[0].load()
    except Exception as error:  # code of another distribution
        raise ConfigError(
            f"{where}: the family {quote(name)} of {providers[0]} cannot be imported: {one_line(error)}"
        ) from error
    wanted = sorted(name for name in (*Family.__annotations__, *vars(Family)) if not name.startswith("_"))
    if missing := [name for name in wanted if not hasattr(class_, name)]:
        raise ConfigError(
            f"{where}: the family {quote(name)} of {providers[0]} lacks {', '.join(missing)} "
            "(prebake.families.family.Family lists what a family has)"
        )
    return class_


def _entries() -> list[EntryPoint]:
    from importlib.metadata import entry_points  # read for unknown names only: it takes milliseconds

    return list(entry_points(group=GROUP))


def _spelled(entry: EntryPoint) -> str:
    return f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.value
