"""Which files of a checkpoint hold weights, and names in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from prebake.documents.messages import quote
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
    known = sorted(names)
    return ", ".join(quote(name) for name in known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
