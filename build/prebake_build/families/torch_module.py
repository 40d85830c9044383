"""Any network: a `module:factory` of the application, and the files with its state dict."""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.documents.messages import describe, nearest, quote
from prebake.documents.table import Table
from prebake.errors import ConfigError, PrebakeError
from prebake.families.torch_module import build, with_folder
from prebake_build.families.family import BuildFamily, Ordinary, Recipe, declared_files
from prebake_build.families.files import file_option, kept_files, some, weights_files
from prebake_build.sources.selection import ANY, Wanted

if TYPE_CHECKING:
    from torch import nn

    from prebake_build.families.state_dicts import StateDict


class TorchBuild(BuildFamily):
    example = "torch:package.module:factory"
    pattern = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
    keys = ("arguments", "file", "ignore", "key")

    def options(self, table: Table) -> Mapping[str, Any]:
        """`arguments`: keyword arguments of the factory; `file`: which files; `key`: where the state dict stands;
        `ignore`: names of tensors that the network does without."""
        key = table.maybe("key", str)
        if key == "":
            raise table.fail("key", "is empty: leave it out if the file's object is the state dict")
        return {
            "arguments": plain_arguments(table),
            **file_option(table, several=True),
            **({} if key is None else {"key": key}),
            **({"ignore": list(table.strings("ignore"))} if "ignore" in set(table) else {}),
        }

    def hub(self, options: Mapping[str, Any]) -> Wanted:
        return Wanted(weights=ANY, files=declared_files(options))

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        from prebake_build.families.state_dicts import cast, completed, fill, without

        where = f"models.{recipe.name}"
        if recipe.class_ is None:
            raise ConfigError(
                f'{where}.class: a model of family torch needs one: class = "torch:package.module:factory"'
            )
        state = _state(recipe, checkpoint, where)
        if recipe.dtype != "source":
            state = cast(state, getattr(torch, recipe.dtype))
        allow = (recipe.class_.partition(":")[0],)  # the application chose it in models.toml
        arguments = dict(recipe.options.get("arguments", {}))
        options: dict[str, Any] = {"arguments": arguments}
        keep: tuple[str, ...] = ()
        with _failures(recipe.class_, f"{where}.class"):
            if _wants_folder(recipe.class_, arguments, f"{where}.class", allow):
                options["folder"] = True
                keep = kept_files(checkpoint)
            module = build(recipe.class_, with_folder(options, checkpoint), f"{where}.class", allow)
        state = without(state, recipe.options.get("ignore", ()), module, where)
        _check_places(module, state, recipe.options.get("file"), f"{where}.file")
        fill(module, completed(state, module), where)
        return Ordinary(module=module.eval(), class_=recipe.class_, options=options, keep=keep, allow=allow)


def _state(recipe: Recipe, checkpoint: Path, where: str) -> StateDict:
    """The state dict, of one file or of several."""
    from prebake_build.families.state_dicts import read_state_dict

    files = weights_files(checkpoint, recipe.options.get("file"), where)
    states = [(prefix, path, read_state_dict(path, where, recipe.options.get("key"))) for prefix, path in files]
    if len(states) == 1 and not states[0][0]:
        return states[0][2]  # as it is, with the version metadata of a pickle
    merged: dict[str, Any] = {}
    for prefix, path, state in states:
        named = {prefix + name: tensor for name, tensor in state.items()}
        if twice := merged.keys() & named.keys():
            raise ConfigError(
                f"{where}.file: {path.name} and a file before it both hold {some(twice)}: if each is a part of the "
                'network, give its place, file = { encoder = "a.pth", decoder = "b.pth" }'
            )
        merged |= named
    return merged


def _check_places(module: nn.Module, state: StateDict, file: object, where: str) -> None:
    """Raise ConfigError if the table `file` gives tensors to a part that the network lacks."""
    names = list(module.state_dict()) if isinstance(file, Mapping) else []
    for place in file if isinstance(file, Mapping) else ():
        inside = f"{place}."
        if place and _any_inside(inside, state) and not _any_inside(inside, names):
            parts = list(dict.fromkeys(name.partition(".")[0] for name in names if "." in name))
            listed = ", ".join(map(quote, parts)) or "none"
            raise ConfigError(
                f"{where}: the network has no part {quote(place)} (it has {listed}){nearest(place, parts)}"
            )


def _any_inside(prefix: str, names: Iterable[str]) -> bool:
    return any(name.startswith(prefix) for name in names)


def _wants_folder(factory: str, arguments: Mapping[str, Any], where: str, allow: tuple[str, ...]) -> bool:
    """Whether the factory has a parameter `folder` that `models.toml` gives no value."""
    from prebake.families.allowed import find_factory

    try:
        parameters = inspect.signature(find_factory(factory, allow, where)).parameters
    except (ValueError, TypeError):  # a function of C
        return False
    found = parameters.get("folder")
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return found is not None and found.kind in named and "folder" not in arguments


@contextmanager
def _failures(factory: str, where: str) -> Iterator[None]:
    """Turns what the user's code raises inside the block, at its import or its call, into one ConfigError."""
    from prebake_build.families.state_dicts import first_line

    try:
        yield
    except PrebakeError:
        raise
    except Exception as error:
        raise ConfigError(f"{where}: {factory} failed: {type(error).__name__}: {first_line(error)}") from error


def plain_arguments(table: Table) -> dict[str, Any]:
    """The key `arguments`, whose values JSON can represent: strings, numbers, booleans, lists and tables of these."""
    arguments = table.take("arguments", dict, {})
    for key, value in arguments.items():
        if (found := _not_plain(value)) is not None:
            raise table.fail(f"arguments.{key}", f"the manifest (JSON) cannot contain {found}")
    return arguments


def _not_plain(value: object) -> str | None:
    """The first part of `value` that JSON can't represent (TOML's dates and times, infinity, NaN), or None."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return next((found for item in inner if (found := _not_plain(item)) is not None), None)
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return None if isinstance(value, str | int | float) else describe(value)
