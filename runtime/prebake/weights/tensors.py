"""A safetensors file as tensors: mapped copy-on-write, or read into memory.

In both cases, every tensor is a view of one storage. A mapped storage is the file's pages: a page is read when it is
first touched, and all processes of the host share clean pages. Writing to a tensor copies the touched pages for this
process only (MAP_PRIVATE); the file never changes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, cast

import torch

from prebake.baked.header import ITEM_SIZES, Header, read_header
from prebake.documents.messages import reason
from prebake.errors import TensorFileError

DTYPES: dict[str, torch.dtype] = {
    "BOOL": torch.bool,
    "U8": torch.uint8, "I8": torch.int8,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2,
    "I16": torch.int16, "U16": torch.uint16, "F16": torch.float16, "BF16": torch.bfloat16,
    "I32": torch.int32, "U32": torch.uint32, "F32": torch.float32,
    "I64": torch.int64, "U64": torch.uint64, "F64": torch.float64, "C64": torch.complex64,
}  # fmt: skip
"""safetensors dtype name → torch dtype."""
if hasattr(torch, "float8_e8m0fnu"):  # torch 2.7
    DTYPES["F8_E8M0"] = torch.float8_e8m0fnu

DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}

ALIGNMENT = 64
"""Bytes that torch's CPU allocator aligns every tensor to."""

Opener = Callable[[Path], dict[str, torch.Tensor]]


def map_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of the file, as views of its private mapping.

    Raises TensorFileError if the file does not match its header or can't be mapped.
    """
    header = read_header(path)
    return views(map_storage(path, header), header, header.data_start, path)


def map_storage(path: Path, header: Header) -> torch.UntypedStorage:
    """The whole file, mapped copy-on-write. Raises TensorFileError if it can't be mapped."""
    try:
        storage = torch.UntypedStorage.from_file(str(path), False, header.data_start + header.size)
    except (RuntimeError, OSError) as error:
        raise TensorFileError(f"{path}: cannot be mapped: {reason(error)}") from error
    return cast(torch.UntypedStorage, storage)


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """All tensors of the file, as views of one buffer in memory.

    Raises TensorFileError if the file does not match its header or ends during the read.
    """
    header = read_header(path)
    buffer = torch.empty(header.size, dtype=torch.uint8)
    try:
        with path.open("rb", buffering=0) as file:
            file.seek(header.data_start)
            _fill(file, memoryview(cast(Any, buffer.numpy())), path)
    except OSError as error:
        raise TensorFileError(f"{path}: cannot read these weights: {reason(error)}") from error
    return views(buffer.untyped_storage(), header, 0, path)


def _fill(file: BinaryIO, target: memoryview, path: Path) -> None:
    while len(target):
        count = file.readinto(target)  # type: ignore[attr-defined]  # an unbuffered file is a RawIOBase
        if not count:
            raise TensorFileError(f"{path}: ended {len(target):,} bytes early while it was read")
        target = target[count:]


def views(storage: torch.UntypedStorage, header: Header, start: int, path: Path) -> dict[str, torch.Tensor]:
    """Every tensor of the header as a view of the storage; the data part begins at byte `start`."""
    tensors = {}
    for name, entry in header.entries.items():
        if entry.dtype not in DTYPES:
            raise TensorFileError(f"{path}: this torch ({torch.__version__}) has no type {entry.dtype}")
        item = ITEM_SIZES[entry.dtype]
        offset, rest = divmod(start + entry.begin, item)
        if rest:
            raise TensorFileError(f"{path}: {name} is not aligned to its {item} bytes per element")
        empty = torch.empty(0, dtype=DTYPES[entry.dtype], device=storage.device)
        tensors[name] = empty.set_(storage, offset, entry.shape, _strides(entry.shape))
    return tensors


def aligned(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, copied if it does not start at a multiple of `ALIGNMENT` bytes.

    Kernels process an unaligned tensor in different steps and so sum in a different order: the outputs would differ in
    their last bits from those of an ordinary load.
    """
    return tensor.clone() if tensor.numel() and tensor.data_ptr() % ALIGNMENT else tensor


def _strides(shape: tuple[int, ...]) -> tuple[int, ...]:
    strides: list[int] = []
    step = 1
    for size in reversed(shape):
        strides.append(step)
        step *= max(size, 1)
    return tuple(reversed(strides))
