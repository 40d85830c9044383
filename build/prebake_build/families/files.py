"""Which files of a checkpoint hold weights, and names in messages."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from prebake.documents.messages import quote
from prebake_build.files.digest import paths_of

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
OTHER_SUFFIXES = (".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".zip")
"""Weights of other frameworks, which are neither read nor copied."""


def is_weights(path: Path) -> bool:
    """Whether the file holds weights, or is the index of their shards."""
    return path.suffix in WEIGHT_SUFFIXES or path.name.endswith((".safetensors.index.json", ".bin.index.json"))


def kept_files(checkpoint: Path) -> tuple[str, ...]:
    """Every file that holds no weights, sorted: the small files to keep."""
    return tuple(
        path
        for path in paths_of(checkpoint, hidden=False)
        if not is_weights(Path(path)) and not path.endswith(OTHER_SUFFIXES)
    )


def some(names: Iterable[str]) -> str:
    """The first five names, sorted, and how many more there are."""
    known = sorted(names)
    return ", ".join(quote(name) for name in known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
