"""Decides, for each page of a stopped process, where the restored process gets it from; writes `memory.img`.

==============================  ==========================================================================
pages of files, unwritten        mapped from their own files
pages that the process wrote     mapped from `memory.img`, privately: nothing is copied at the restore, and all
                                 containers of a host share the page cache
the stack, heaps of threads      copied from `memory.img` into anonymous memory (below)
pages of zeros, and untouched    anonymous memory
==============================  ==========================================================================

Memory that is mapped from a file differs from anonymous memory in two system calls, and glibc uses both:

- `madvise(MADV_DONTNEED)` brings back the file's content, not zeros. glibc gives back the tops of other threads' heaps
  that way and takes them for zeros in `calloc`. So these heaps (`heap_info` at a multiple of 64 MB) are copied.
- `mremap` that enlarges a mapping brings the following pages of the file, or SIGBUS behind its end. glibc's `realloc`
  enlarges chunks that have a mapping of their own. So such chunks are copied.

`prebake snapshot` starts the process with `glibc.malloc.arena_max=1` and `mmap_max=0`, so that there are none of
either, and everything can be mapped: this module finds those that there are nevertheless.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from prebake.errors import SnapshotError
from prebake.snapshot.process import Area, Stopped
from prebake.snapshot.table import (
    COPIED,
    LOW_END,
    MAPPED,
    MEMORY_IMG,
    PAGE,
    SHARED,
    File,
    Mapping,
    checksum,
    joined,
)

HEAP = 64 << 20
"""glibc's HEAP_MAX_SIZE: heaps of threads begin at its multiples."""
GAP = 16 * PAGE
"""Untouched pages between written ones become pages of memory.img up to this size: each mapping costs time."""
STACK = 8 << 20
"""Bytes that the main thread's stack may grow to."""
GUARD = 256 * PAGE
"""Bytes that stay unmapped below it, as the kernel leaves them."""
FOREIGN_ALLOCATORS = ("libjemalloc", "libtcmalloc", "libmimalloc")
"""They take memory after MADV_DONTNEED for zeros: everything is copied then."""
KERNEL = ("[vvar]", "[vvar_vclock]", "[vdso]", "[vsyscall]")


@dataclass
class Layout:
    """The mappings of the restored process, and the files that they need."""

    mappings: list[Mapping] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    image_bytes: int = 0
    copied: int = 0
    """Bytes of memory.img that each container copies."""
    content: dict[str, int] = field(default_factory=dict)
    """What memory.img holds: `[heap]`, `[stack]`, `anonymous` or a file that the process wrote to → bytes."""

    def file(self, path: str) -> int:
        if path not in self.paths:
            self.paths.append(path)
        return self.paths.index(path)


def lay_out(stopped: Stopped, image: int) -> Layout:
    """Append the process's own pages to the open file `image`, and tell where everything comes from.

    Raises SnapshotError for mappings that a snapshot cannot hold.
    """
    writer = _Writer(image)
    layout = Layout()
    copy_all = any(name in area.name for area in stopped.areas for name in FOREIGN_ALLOCATORS)
    found: list[Mapping] = []
    below = LOW_END
    for area in stopped.areas:
        if area.name in KERNEL:
            continue
        _check(area)
        if area.name == "[stack]":
            grown = max(below + GUARD, area.end - STACK)
            found.append(Mapping(start=grown, bytes=max(0, area.start - grown), protection=area.protection))
        before = writer.end
        if area.is_file:
            found += _of_file(stopped, area, layout.file(area.name), writer)
        else:
            found += _anonymous(stopped, area, writer, copy_all=copy_all or area.name == "[stack]")
        if writer.end > before:
            name = area.name if area.is_file or area.name in ("[heap]", "[stack]") else "anonymous"
            layout.content[name] = layout.content.get(name, 0) + writer.end - before
        below = area.end
    layout.mappings = joined(mapping for mapping in found if mapping.bytes)
    layout.image_bytes = writer.end
    layout.copied = sum(mapping.bytes for mapping in layout.mappings if mapping.kind == COPIED)
    return layout


def as_it_is(path: str, *, head: bool = True) -> File:
    """A file's size, time and first page. Raises OSError."""
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123
        about = os.fstat(file.fileno())
        first = checksum(file.read(PAGE)) if head else 0
    return File(path=path, bytes=about.st_size, head=first, mtime_ns=about.st_mtime_ns)


class _Writer:
    """Appends pages to memory.img, after its first page."""

    def __init__(self, image: int) -> None:
        self._image = image
        self.end = PAGE

    def add(self, data: bytes) -> int:
        """The offset at which the data begins."""
        offset = self.end
        view = memoryview(data)
        while view:
            view = view[os.write(self._image, view) :]
        self.end += len(data)
        return offset


def _check(area: Area) -> None:
    if area.start < LOW_END:
        raise SnapshotError(f"memory at {area.start:#x}, where the restorer stands: {area.name or 'anonymous'}")
    if not area.is_file and not area.is_anonymous:
        raise SnapshotError(f"a mapping of an unknown kind: {area.name}")
    if not area.is_file and area.shared:
        raise SnapshotError("shared anonymous memory")
    if area.is_file and area.name.endswith(" (deleted)"):
        raise SnapshotError(f"a mapping of a file that is gone: {area.name.removesuffix(' (deleted)')}")
    if area.is_file and not Path(area.name).is_file():
        raise SnapshotError(f"a mapping of something that is not a plain file: {area.name}")
    if area.shared and area.protection & 2:
        raise SnapshotError(f"a file that is mapped for writing: {area.name}")


def _of_file(stopped: Stopped, area: Area, file: int, writer: _Writer) -> Iterator[Mapping]:
    def clean(start: int, end: int) -> Mapping:
        return Mapping(start=start, bytes=end - start, protection=area.protection, file=file,
                       kind=SHARED if area.shared else MAPPED, offset=area.offset + start - area.start)  # fmt: skip

    at = area.start
    for start, end in () if area.shared else _merged(stopped.own_runs(area)):
        yield clean(at, start)
        offset = writer.add(stopped.read(start, end - start))
        yield Mapping(start=start, bytes=end - start, protection=area.protection, file=MEMORY_IMG, offset=offset)
        at = end
    yield clean(at, area.end)


def _anonymous(stopped: Stopped, area: Area, writer: _Writer, *, copy_all: bool) -> Iterator[Mapping]:
    def untouched(start: int, end: int) -> Mapping:
        return Mapping(start=start, bytes=end - start, protection=area.protection)

    at = area.start
    copied = [(area.start, area.end)] if copy_all else list(_unmappable(stopped, area))
    for start, end in _merged(_without_zeros(stopped, stopped.own_runs(area))):
        for begin, finish, kind in _split(start, end, copied):
            yield untouched(at, begin)
            offset = writer.add(stopped.read(begin, finish - begin))
            yield Mapping(start=begin, bytes=finish - begin, protection=area.protection, kind=kind,
                          file=MEMORY_IMG, offset=offset)  # fmt: skip
            at = finish
    yield untouched(at, area.end)


def _merged(runs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Runs with gaps of at most GAP between them, made one."""
    pending = None
    for start, end in runs:
        if pending and start - pending[1] <= GAP:
            pending = pending[0], end
            continue
        if pending:
            yield pending
        pending = start, end
    if pending:
        yield pending


def _without_zeros(stopped: Stopped, runs: Iterator[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    zeros = bytes(PAGE)
    for start, end in runs:
        begin = None
        for piece in range(start, end, 1 << 20):
            data = stopped.read(piece, min(end - piece, 1 << 20))
            for at in range(0, len(data), PAGE):
                written = data[at : at + PAGE] != zeros
                if written and begin is None:
                    begin = piece + at
                elif not written and begin is not None:
                    yield begin, piece + at
                    begin = None
        if begin is not None:
            yield begin, end


def _split(start: int, end: int, copied: list[tuple[int, int]]) -> Iterator[tuple[int, int, int]]:
    """The run in parts, each with its kind."""
    at = start
    for begin, finish in copied:
        begin, finish = max(begin, start), min(finish, end)
        if begin >= finish or finish <= at:
            continue
        begin = max(begin, at)
        if at < begin:
            yield at, begin, MAPPED
        yield begin, finish, COPIED
        at = finish
    if at < end:
        yield at, end, MAPPED


def _unmappable(stopped: Stopped, area: Area) -> Iterator[tuple[int, int]]:
    """Ranges of anonymous memory that glibc would damage if they were mapped, in order: heaps of threads, and chunks
    with a mapping of their own. False alarms cost copies, nothing else."""
    if area.protection & 3 != 3 or area.name == "[heap]":
        return
    at = area.start
    touched = {start for run in stopped.own_runs(area) for start in range(*run, PAGE)}
    for page in sorted(touched):
        if page < at:
            continue
        prev_size, size, third, fourth = struct.unpack("<4Q", stopped.read(page, 32))
        if page % HEAP == 0 and _is_heap(prev_size, size, third, fourth):
            at = min(page + fourth, area.end)
        elif size & 7 == 2 and prev_size < PAGE and (prev_size + size - 2) % PAGE == 0 and page + size <= area.end + 2:
            at = page + size - 2
        else:
            continue
        yield page, at


def _is_heap(arena: int, previous: int, size: int, writable: int) -> bool:
    """Whether these are the first fields of glibc's `struct _heap_info` (malloc/arena.c)."""
    return bool(arena) and previous % HEAP == 0 and 0 < size <= writable <= HEAP and not (size | writable) % PAGE
