"""Which files of a checkpoint hold weights, and names in messages."""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from prebake.documents.messages import quote
from prebake.documents.table import Table
from prebake_build.files.digest import paths_of

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
VARIANT = "variant"
"""Key of a model's table: which of the published weights to use."""
OTHER_SUFFIXES = (".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".zip")
"""Weights of other frameworks, which are neither read nor copied."""


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
