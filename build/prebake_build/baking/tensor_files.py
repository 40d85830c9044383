"""Writes safetensors files with canonical bytes, in one pass: read ahead, write, read back, compare, hash.

Checkpoints are mapped, so a tensor's bytes come from the disk when they are first touched. The kernel is told of the
next pieces before they are needed, and a thread reads back each piece through a mapping of the new file while it is
still in memory. So a file's hash is that of what the file holds, and the proof need not read it again (`Verified`).
"""

from __future__ import annotations

import ctypes
import hashlib
import json
import math
import sys
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from prebake.baked import layout
from prebake.baked.manifest import File
from prebake.errors import IntegrityError
from prebake.modules.assembly import identity_of
from prebake.weights.tensors import ALIGNMENT, DTYPE_NAMES
from prebake_build.files import progress
from prebake_build.files.pages import DONTNEED, PAGEOUT, WILLNEED, Mappings, Place, advise, are_equal, elements

PIECE = 1 << 20
"""Bytes that are written, compared and hashed at once: they stay in the processor's cache."""
_READ_AHEAD, _BEHIND = 64, 8
"""Pieces that are read before they are written, and that may wait for the hash."""
LARGE = 64 << 20
"""Files of at least so many bytes are not read a second time by the proof."""
_TICK = 0.02
"""Seconds: more than a tick of the kernel's coarse clock. Later changes of a file then have another time."""


@dataclass(frozen=True, slots=True)
class _Area:
    """Where a tensor's bytes were read back, and the state of the file then."""

    place: Place
    path: Path
    stamp: tuple[int, ...]


class Verified:
    """Tensors whose bytes were read back from a file after they were written, and were equal."""

    def __init__(self) -> None:
        self._areas: dict[tuple[object, ...], _Area] = {}

    def add(self, path: Path, begin: int, tensors: Sequence[torch.Tensor]) -> None:
        """Add tensors that were compared with a mapping of the file, one after another from the address `begin` on."""
        time.sleep(_TICK)
        mappings, stamp = Mappings(), _stamp(path)
        for tensor in tensors:
            if place := mappings.place(begin, _size(tensor)):
                self._areas[identity_of(tensor)] = _Area(place, path, stamp)
            begin += _size(tensor)

    def holds(self, expected: torch.Tensor, found: torch.Tensor, mappings: Mappings) -> bool:
        """Whether `found` is a view of the very bytes that were compared with `expected`, in a file that did not change
        since then. False does not mean that they differ."""
        area, place = self._areas.get(identity_of(expected)), elements(found)
        if area is None or place is None or (expected.dtype, expected.shape) != (found.dtype, found.shape):
            return False
        return mappings.place(*place) == area.place and _stamp(area.path) == area.stamp


def _stamp(path: Path) -> tuple[int, ...]:
    """Changes with every change of the file: programs cannot set the ctime."""
    found = path.stat()
    return (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


def write_tensors(
    path: Path, tensors: Mapping[str, torch.Tensor], verified: Verified | None = None, *, scarce: bool = False
) -> File:
    """Write one safetensors file, which is not synced. If it is large, its tensors are added to `verified`.

    Tensors are in the order of `canonical_order`. The header is padded with spaces so that the data starts on a page.
    If memory is `scarce`, the tensors' pages are given back at once: the kernel would have to look for them otherwise.
    Raises IntegrityError if the file does not hold what was written, and OSError.
    """
    order = canonical_order(tensors)
    head = _header(tensors, order)
    size = len(head) + sum(_size(tensors[name]) for name in order)
    with path.open("xb", buffering=0) as file:
        file.truncate(size)
        # a private mapping shows what is written to the file, as long as nobody writes to the mapping
        written = torch.UntypedStorage.from_file(str(path), False, size)
        digest = _write(file, _pieces(head, tensors, order), written.data_ptr(), path, scarce=scarce)
    if verified is not None and size >= LARGE:
        verified.add(path, written.data_ptr() + len(head), [tensors[name] for name in order])
    return File(path=path.name, size=size, sha256=digest)


def file_size(tensors: Mapping[str, torch.Tensor]) -> int:
    """The size in bytes of the file that `write_tensors` writes for them."""
    return len(_header(tensors, canonical_order(tensors))) + sum(_size(tensor) for tensor in tensors.values())


def _write(file: BinaryIO, pieces: Iterator[memoryview], written: int, path: Path, *, scarce: bool) -> str:
    """Write the pieces; returns the sha256 of what the file holds. `written` is the address of its mapping."""
    digest = hashlib.sha256()

    def check(piece: memoryview, position: int) -> None:
        source, count, copy = _address(piece), len(piece), written + position
        if not are_equal(source, copy, count):
            raise IntegrityError(f"{path}: reads back other bytes than were written to it: is the disk damaged?")
        digest.update((ctypes.c_char * count).from_address(copy))
        advise(copy, count, DONTNEED)
        if scarce:
            advise(source, count, PAGEOUT)

    with ThreadPoolExecutor(max_workers=1) as checking, ThreadPoolExecutor(max_workers=1) as reading:
        waiting: deque[Future[None]] = deque()
        position = 0
        for piece in _ahead(pieces, reading):
            done = 0
            while done < len(piece):
                done += file.write(piece[done:])
            waiting.append(checking.submit(check, piece, position))
            position += len(piece)
            progress.add(len(piece))
            if len(waiting) > _BEHIND:
                waiting.popleft().result()
        for future in waiting:
            future.result()
    return digest.hexdigest()


def _ahead(pieces: Iterator[memoryview], reading: ThreadPoolExecutor) -> Iterator[memoryview]:
    """The pieces, each after the kernel was told of those that follow it."""
    waiting: deque[memoryview] = deque()
    for piece in pieces:
        reading.submit(advise, _address(piece), len(piece), WILLNEED)
        waiting.append(piece)
        if len(waiting) > _READ_AHEAD:
            yield waiting.popleft()
    yield from waiting


def _pieces(head: bytes, tensors: Mapping[str, torch.Tensor], order: list[str]) -> Iterator[memoryview]:
    yield memoryview(bytearray(head))
    for name in order:
        data = _bytes(tensors[name])
        for begin in range(0, len(data), PIECE):
            yield data[begin : begin + PIECE]


def _address(piece: memoryview) -> int:
    return ctypes.addressof(ctypes.c_char.from_buffer(piece))


def canonical_order(tensors: Mapping[str, torch.Tensor]) -> list[str]:
    """The names by the largest power of two up to 64 that divides the size in bytes, in descending order, then by name.

    So without gaps each tensor starts at a multiple of that power: most at a multiple of 64 bytes, like those from
    torch's allocator, and all at a multiple of their element size.
    """
    return sorted(tensors, key=lambda name: (-math.gcd(_size(tensors[name]), ALIGNMENT), name))


def _size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _header(tensors: Mapping[str, torch.Tensor], order: list[str]) -> bytes:
    # transformers refuses a file whose metadata does not name the framework
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name in order:
        tensor = tensors[name]
        end = position + _size(tensor)
        document[name] = {"dtype": DTYPE_NAMES[tensor.dtype], "shape": list(tensor.shape),
                          "data_offsets": [position, end]}  # fmt: skip
        position = end
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-(8 + len(text)) % layout.PAGE)
    return len(text).to_bytes(8, "little") + text


def _bytes(tensor: torch.Tensor) -> memoryview:
    """The elements, little-endian and in row-major order; a view if the tensor already has this layout."""
    assert sys.byteorder == "little", "safetensors is little-endian, and so are all platforms of torch's wheels"
    whole = tensor.detach().to("cpu").resolve_conj().resolve_neg().contiguous()
    count = _size(whole)
    if not count:
        return memoryview(b"")
    raw = (ctypes.c_char * count).from_address(whole.data_ptr())
    raw._keep = whole  # type: ignore[attr-defined]  # the memory lives as long as the view
    return memoryview(raw).cast("B")
