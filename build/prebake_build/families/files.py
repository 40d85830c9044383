"""Which files of a checkpoint hold weights, and names in messages."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.documents.messages import describe, nearest, quote
from prebake.documents.table import Table
from prebake.errors import ConfigError
from prebake_build.files.digest import paths_of

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
VARIANT = "variant"
"""Key of a model's table: which of the published weights to use."""
OTHER_SUFFIXES = (".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".zip")
"""Weights of other frameworks, which are neither read nor copied."""


def check_variant(checkpoint: Path, options: Mapping[str, Any], where: str) -> None:
    """Raise ConfigError if a variant is declared whose weights the checkpoint lacks."""
    value = options.get(VARIANT)
    weights = [path.name for path in checkpoint.rglob("*") if is_weights(path)]
    if value is not None and not any(f".{value}." in name or f".{value}-" in name for name in weights):
        raise ConfigError(
            f"{where}.{VARIANT}: the checkpoint has no weights of the variant {quote(value)} (it has {some(weights)}): "
            "if it was locked before this key was written, run `prebake lock` again"
        )


_INDEX = re.compile(r".*\.(?:safetensors|bin)(?:\.\w+)?\.index(?:\.\w+)?\.json")
"""The index of shards, perhaps of a variant: `model.safetensors.index.fp16.json`."""


def is_weights(path: Path) -> bool:
    """Whether the file holds weights, or is the index of their shards."""
    return path.suffix in WEIGHT_SUFFIXES or bool(_INDEX.fullmatch(path.name))


def kept_files(checkpoint: Path, *, code: bool = True) -> tuple[str, ...]:
    """Every file that holds no weights, sorted: the small files to keep; without `code`, no Python files."""
    left_out = OTHER_SUFFIXES if code else (*OTHER_SUFFIXES, ".py")
    return tuple(
        path
        for path in paths_of(checkpoint, hidden=False)
        if not is_weights(Path(path)) and not path.endswith(left_out)
    )


def variant(table: Table) -> dict[str, str]:
    """The key `variant`, such as `fp16`, if the table has it."""
    value = table.maybe(VARIANT, str)
    if value is not None and not re.fullmatch(r"[A-Za-z0-9_]+", value):
        raise table.fail(VARIANT, f'{quote(value)} is not a variant (expected a word such as "fp16")')
    return {VARIANT: value} if value is not None else {}


def some(names: Iterable[str]) -> str:
    """The first five names, sorted, and how many more there are."""
    return first_five(sorted(names))


def first_five(names: Iterable[str]) -> str:
    """The first five names, and how many more there are."""
    known = list(names)
    return ", ".join(quote(name) for name in known[:5]) + (f" and {len(known) - 5:,} more" if len(known) > 5 else "")


def file_option(table: Table, *, several: bool) -> Mapping[str, Any]:
    """The key `file` of a model's table, or nothing if it is left out.

    A path in the checkpoint; with `several` also a list of them, or a table from a prefix of names to a path. Raises
    ConfigError.
    """
    value: Any = table.raw("file")  # absent or not: the table knows this key
    if "file" not in set(table):
        return {}
    paths: list[Any] = (
        list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else [value]
    )
    if not paths or not all(isinstance(path, str) for path in paths) or (not several and not isinstance(value, str)):
        form = "a string, a list of strings or a table of strings" if several else "a string"
        raise table.fail("file", f"expected {form}, found {describe(value)}")
    for path in paths:
        if not layout.is_inside(path):
            raise table.fail("file", f"{quote(path)} is not a path in the checkpoint")
        if paths.count(path) > 1:
            raise table.fail("file", f"{quote(path)} is named twice")
    return {"file": value}


def weights_files(checkpoint: Path, declared: Any, where: str, *, several: bool = True) -> list[tuple[str, Path]]:
    """The declared files of weights, or the only one that there is, or the shards of the only index: pairs of a prefix
    for its names, and its path.

    `declared` is the value of `file_option`, or None. Raises ConfigError if a file is not there, or if none is declared
    and the checkpoint has none or several.
    """
    found = sorted(path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file())
    candidates = [path for path in found if is_weights(Path(path))]
    if declared is None:
        if several and (shards := _shards(checkpoint, candidates)):
            return [("", checkpoint / path) for path in shards]
        if len(candidates) != 1:
            way_out = f': add file = "…"{" or a list" if several else ""} to choose' if candidates else ""
            raise ConfigError(
                f"{where}.source: expected one file of weights ({', '.join(WEIGHT_SUFFIXES)}), "
                f"found {first_five(candidates) if candidates else 'none'}{way_out}"
            )
        return [("", checkpoint / candidates[0])]
    if isinstance(declared, Mapping):
        pairs = [(f"{prefix}." if prefix else "", path) for prefix, path in declared.items()]
    else:
        pairs = [("", path) for path in ([declared] if isinstance(declared, str) else declared)]
    for _, path in pairs:
        if path not in found:
            listed = first_five(candidates) if candidates else "no file of weights"
            raise ConfigError(
                f"{where}.file: the checkpoint has no {quote(path)} (it has {listed}){nearest(path, candidates)}"
            )
    return [(prefix, checkpoint / path) for prefix, path in pairs]


def _shards(checkpoint: Path, candidates: list[str]) -> list[str]:
    """The candidates other than an index, if there is one index, and it lists exactly these."""
    indexes = [path for path in candidates if _INDEX.fullmatch(Path(path).name)]
    if len(indexes) != 1:
        return []
    try:
        listed = set(json.loads((checkpoint / indexes[0]).read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    folder = indexes[0][: indexes[0].rfind("/") + 1]
    shards = [path for path in candidates if path != indexes[0]]
    return shards if {folder + str(name) for name in listed} == set(shards) else []
