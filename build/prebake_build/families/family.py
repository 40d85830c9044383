"""The `BuildFamily` interface, and the function that finds the build's half of a family.

The build finds a family as the runtime does (`prebake.families.family`): the runtime's class names the build's in its
attribute `build`. docs/families.md has a template.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.baked import layout
from prebake.documents.messages import one_line, quote
from prebake.documents.table import Table
from prebake.errors import ConfigError
from prebake.families.family import NAMES, family_class
from prebake_build.sources.selection import Wanted

if TYPE_CHECKING:
    from torch import nn

DTYPES = ("float32", "bfloat16", "float16", "source")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to read a checkpoint, as declared in `models.toml`."""

    name: str
    family: str
    class_: str | None
    dtype: str
    """A torch dtype's name, or `source` for the checkpoint's own."""
    options: Mapping[str, Any]
    """What `BuildFamily.options` returned, and what the source tells: `languages` of an `easyocr:` source."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordinary:
    """The reference module, and what the runtime needs to build the same one."""

    module: nn.Module
    class_: str
    options: Mapping[str, Any]
    keep: tuple[str, ...] = ()
    """Small files of the checkpoint to copy into the baked folder, as relative paths."""
    requires: tuple[str, ...] = ("torch",)
    """Packages whose versions the proof depends on."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Small files whose text differs from the checkpoint's: path → text."""
    weights: Mapping[str, str] = field(default_factory=lambda: {layout.WEIGHTS: ""})
    """Files for the module's state dict: path → prefix of the names of the tensors in it, which its names lack."""
    whole: tuple[str, ...] = ()
    """Files of `weights` that the library reads by their name, without an index of shards: they are not split."""
    allow: tuple[str, ...] = ()
    """Python modules whose code builds the model: the application chose them in `models.toml`."""


class BuildFamily(ABC):
    """What the build knows about one family. A subclass sets the attributes and implements `load`.

    Instances keep no state. `options` runs wherever `models.toml` is read. `load` runs only in the worker process, and
    must not run code from a checkpoint.
    """

    example: str
    """A value of `class` as messages show it: `transformers:BlipForConditionalGeneration`."""
    pattern: re.Pattern[str]
    """Matches the part of `class` after the family, completely."""
    keys: tuple[str, ...] = ()
    """The family's own keys of a model's table, which `options` takes."""
    dtypes: tuple[str, ...] = DTYPES
    """The values of `dtype` that its models may have."""
    no_inputs: str = ""
    """Why a warm-up can't be declared as inputs, after the family's name; empty if it can."""

    def options(self, table: Table) -> Mapping[str, Any]:
        """The values of `keys` in a model's table, as plain JSON values; a missing key gets its default.

        Raises ConfigError, best by `table.fail`. An option that is not returned where it is left out changes no digest.
        """
        return {}

    def hub(self, options: Mapping[str, Any]) -> Wanted:
        """Which files of a hub's repository its models need, given what `options` returned."""
        return Wanted(files=declared_files(options), variant=options.get("variant"))

    @abstractmethod
    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        """Load the checkpoint by its own framework, into a module in evaluation mode: the reference for the proof.

        Raises SourceError if the checkpoint is damaged, incomplete or would run code, and ConfigError if the recipe
        does not fit it. An ImportError becomes a message that tells what to install.
        """


def build_family(name: str, where: str) -> BuildFamily:
    """The build's half of the family. Raises ConfigError for a family that is not installed, or has no such half."""
    named = str(family_class(name, where).build)
    module, _, class_ = named.partition(":")
    try:
        family = getattr(import_module(module), class_)()
    except Exception as error:  # code of another distribution
        raise ConfigError(
            f"{where}: the build's half of the family {quote(name)}, {named}, cannot be imported: {one_line(error)}"
        ) from error
    if not isinstance(family, BuildFamily):
        raise ConfigError(f"{where}: {named} is not a BuildFamily (see prebake_build.families.family)")
    return family


def declared_files(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The files of weights that the option `file` names: a path, a list of paths, or a table of paths."""
    value = options.get("file", [])
    paths = value.values() if isinstance(value, Mapping) else [value] if isinstance(value, str) else value
    return tuple(paths)


MARKS = {"model_index.json": "diffusers"}
"""File of a checkpoint → the family that it tells, where `class` is left out."""


def wanted_of(family: str | None, options: Mapping[str, Any], where: str) -> Wanted:
    """Which files of a hub's repository a model needs; without a family, those of the family that the files tell."""
    if family is not None:
        return build_family(family, where).hub(options)
    return Wanted(instead={mark: build_family(name, where).hub({}) for mark, name in MARKS.items()})


def families_with(key: str) -> list[str]:
    """The families in the box that know this key of a model's table."""
    return [name for name in NAMES if key in build_family(name, name).keys]


def installs(name: str, where: str) -> str:
    """What to install for models of this family, as an argument of pip."""
    return str(family_class(name, where).install)
