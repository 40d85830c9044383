"""Any network: a `module:factory` of the application, and one file with its state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prebake.documents.messages import describe
from prebake.documents.table import Table
from prebake.errors import ConfigError, PrebakeError
from prebake_build.families.family import BuildFamily, Ordinary, Recipe, declared_files
from prebake_build.families.files import WEIGHT_SUFFIXES, is_weights, some
from prebake_build.sources.selection import ANY, Wanted


class TorchBuild(BuildFamily):
    example = "torch:package.module:factory"
    pattern = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
    keys = ("arguments",)

    def options(self, table: Table) -> Mapping[str, Any]:
        """`arguments`: keyword arguments of the factory."""
        return {"arguments": plain_arguments(table)}

    def hub(self, options: Mapping[str, Any]) -> Wanted:
        return Wanted(weights=ANY, files=declared_files(options))

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        from prebake.families.torch_module import build
        from prebake_build.families.state_dicts import cast, completed, fill, first_line, read_state_dict

        where = f"models.{recipe.name}"
        if recipe.class_ is None:
            raise ConfigError(
                f'{where}.class: a model of family torch needs one: class = "torch:package.module:factory"'
            )
        candidates = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and is_weights(path)]
        if len(candidates) != 1:
            raise ConfigError(
                f"{where}.source: expected one file of weights ({', '.join(WEIGHT_SUFFIXES)}), "
                f"found {some([path.name for path in candidates]) if candidates else 'none'}"
            )
        state = read_state_dict(candidates[0], where)
        if recipe.dtype != "source":
            state = cast(state, getattr(torch, recipe.dtype))
        allow = (recipe.class_.partition(":")[0],)  # the application chose it in models.toml
        arguments = dict(recipe.options.get("arguments", {}))
        try:
            module = build(recipe.class_, arguments, f"{where}.class", allow)
        except PrebakeError:
            raise
        except Exception as error:  # the user's code may raise any exception
            raise ConfigError(
                f"{where}.class: {recipe.class_} failed: {type(error).__name__}: {first_line(error)}"
            ) from error
        fill(module, completed(state, module), where)
        return Ordinary(module=module.eval(), class_=recipe.class_, options={"arguments": arguments}, allow=allow)


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
