"""The header of a safetensors file, parsed and checked against the file's actual size. Needs no torch.

Touching a mapped page beyond the end of a truncated file kills the process with SIGBUS, which no `except` can catch. So
a file is mapped only after its header has been checked to describe exactly the file's bytes.

Format: https://github.com/huggingface/safetensors (8 bytes little-endian length, JSON header, data).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from prebake.documents.messages import describe, quote, reason
from prebake.errors import TensorFileError

MAX_HEADER = 100_000_000
"""Bytes; the limit of the reference implementation."""

ITEM_SIZES: Mapping[str, int] = {
    "BOOL": 1, "U8": 1, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1, "F8_E8M0": 1,
    "I16": 2, "U16": 2, "F16": 2, "BF16": 2,
    "I32": 4, "U32": 4, "F32": 4,
    "I64": 8, "U64": 8, "F64": 8, "C64": 8,
}  # fmt: skip
"""safetensors dtype name → bytes per element."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One tensor of the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    """Bytes from the start of the data part."""
    end: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Header:
    """The contents of the file. `data_start + size` is exactly the file's size."""

    entries: Mapping[str, Entry]
    data_start: int
    """Bytes from the start of the file."""
    size: int
    """Bytes of the data part."""


def read_header(path: Path) -> Header:
    """The checked header of a safetensors file.

    Raises TensorFileError if the file is missing, unreadable, truncated, longer than its header says, or not
    safetensors.
    """
    try:
        with path.open("rb") as file:
            return parse_header(file, os.fstat(file.fileno()).st_size, str(path))
    except OSError as error:
        raise TensorFileError(f"{path}: cannot read these weights: {reason(error)}") from error


def parse_header(file: BinaryIO, file_size: int, where: str) -> Header:
    """The checked header of an open safetensors file of `file_size` bytes, which is read up to its data.

    Raises TensorFileError like `read_header`; its messages begin with `where`.
    """
    if file_size < 8:
        raise TensorFileError(f"{where}: {file_size} bytes are too few for a safetensors file")
    length = int.from_bytes(file.read(8), "little")
    if length > MAX_HEADER or 8 + length > file_size:
        raise TensorFileError(
            f"{where}: its first 8 bytes give a header of {length:,} bytes, but the file has {file_size:,}: "
            "this is not a safetensors file, or it is truncated"
        )
    try:
        text = file.read(length).decode("utf-8")
        document = json.loads(text, object_pairs_hook=_unique)
        if "\\u" in text:  # refuse lone surrogates, which no message or file can encode
            json.dumps(document, ensure_ascii=False).encode()
    except (ValueError, RecursionError) as error:
        raise TensorFileError(f"{where}: its header is not JSON: {error}") from error
    if not isinstance(document, dict):
        raise TensorFileError(f"{where}: its header is not a JSON object")
    document.pop("__metadata__", None)
    entries = {name: _entry(name, value, where) for name, value in document.items()}
    data_start = 8 + length
    size = _covered(entries, where)
    if data_start + size != file_size:
        raise TensorFileError(
            f"{where}: its header describes {data_start + size:,} bytes, but the file has {file_size:,}: "
            "it was truncated or changed; bake or pull this model again"
        )
    return Header(entries=entries, data_start=data_start, size=size)


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    document = dict(pairs)
    if len(document) != len(pairs):
        raise ValueError("it has a duplicate key")
    return document


def _entry(name: str, value: object, where: str) -> Entry:
    def bad(what: str) -> TensorFileError:
        return TensorFileError(f"{where}: tensor {quote(name)}: {what}")

    if not isinstance(value, dict) or set(value) != {"dtype", "shape", "data_offsets"}:
        raise bad("expected exactly dtype, shape and data_offsets")
    dtype, shape, offsets = value["dtype"], value["shape"], value["data_offsets"]
    if not isinstance(dtype, str) or dtype not in ITEM_SIZES:
        raise bad(f"unknown dtype {quote(dtype) if isinstance(dtype, str) else describe(dtype)}")
    if not _naturals(shape) or not _naturals(offsets) or len(offsets) != 2:
        raise bad("shape and data_offsets must be lists of non-negative integers")
    begin, end = offsets
    size = _bytes(shape, ITEM_SIZES[dtype])
    if size is None:
        raise bad(f"its shape is too large for any memory: {quote(str(shape))}")
    if end - begin != size:
        raise bad(f"{end - begin} bytes do not hold {dtype} of shape {shape}")
    return Entry(dtype=dtype, shape=tuple(shape), begin=begin, end=end)


def _bytes(shape: list[int], item: int) -> int | None:
    """The tensor's size in bytes, or None if its size or strides do not fit into 64 bits.

    Stops at that limit: the product of a long shape could have millions of digits. Strides are products too, in which
    a size of 0 counts as 1.
    """
    size = item
    for count in shape:
        size *= max(count, 1)
        if size >= 2**63:
            return None
    return 0 if 0 in shape else size


def _naturals(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is int and 0 <= item < 2**63 for item in value)


def _covered(entries: Mapping[str, Entry], where: str) -> int:
    """The size of the data part. The tensors must fill it without gaps or overlaps."""
    position = 0
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].begin, item[1].end)):
        if entry.begin != position:
            raise TensorFileError(
                f"{where}: tensor {quote(name)} begins at {entry.begin}, expected {position}: gap or overlap"
            )
        position = entry.end
    return position
