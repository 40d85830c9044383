"""Which pages of a snapshot a start uses: seen in one restore, the rehearsal, with `PREBAKE_SNAPSHOT_REHEARSAL` set.

Of memory.img the page cache tells: the file is dropped from it before, and the restorer has the kernel read no more
than the pages that are touched (`MADV_RANDOM`). Of libraries `/proc/PID/pagemap` tells, where the kernel maps the 64 kB
around each touched page (it reads around faults in code whatever it is told).
"""

from __future__ import annotations

import ctypes
import mmap
import os
from array import array
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from prebake.errors import SnapshotError
from prebake.snapshot.process import PRESENT_OR_SWAPPED, parse_areas
from prebake.snapshot.table import PAGE

ENV_REHEARSAL = "PREBAKE_SNAPSHOT_REHEARSAL"
"""Set for `prebake-restore`: only touched pages of memory.img come into the page cache, and nothing is read ahead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Used:
    """Numbers of pages that were used up to some moment."""

    image: frozenset[int]
    """Of memory.img."""
    files: dict[str, frozenset[int]] = field(default_factory=dict)
    """Path of a library → its pages."""


def forget(image: Path) -> None:
    """Drop the file from the page cache. Raises SnapshotError if it stays there, as on a file system in memory."""
    descriptor = os.open(image, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)  # only clean pages can be dropped
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    if stays := len(resident(image)):
        raise SnapshotError(f"{image}: {stays} pages stay in the page cache: which are used can't be seen here")


def used(image: Path, pids: Iterable[int]) -> Used:
    """What these processes have used so far."""
    files: dict[str, frozenset[int]] = {}
    for pid in pids:
        with suppress(OSError):  # it has ended
            for path, pages in _of_libraries(Path(f"/proc/{pid}")).items():
                files[path] = files.get(path, frozenset()) | pages
    return Used(image=resident(image), files=files)


def resident(path: Path) -> frozenset[int]:
    """Numbers of the file's pages that are in the page cache. The user must be allowed to write the file: for others
    the kernel says that all are (man 2 mincore)."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ | mmap.PROT_WRITE,
                                            flags=mmap.MAP_PRIVATE) as view:  # fmt: skip
        pages = len(view) // PAGE
        vector = (ctypes.c_ubyte * pages)()
        address = ctypes.c_char.from_buffer(view)  # a buffer must be writable for that; nothing is written
        try:
            libc = ctypes.CDLL(None, use_errno=True)
            if libc.mincore(ctypes.byref(address), ctypes.c_size_t(pages * PAGE), vector):
                raise SnapshotError(f"{path}: {os.strerror(ctypes.get_errno())} (mincore)")
        finally:
            del address
    return frozenset(number for number, state in enumerate(vector) if state & 1)


def _of_libraries(process: Path) -> dict[str, frozenset[int]]:
    """Mapped pages of files that have executable mappings."""
    areas = parse_areas((process / "maps").read_bytes().decode("utf-8", "surrogateescape"))
    with_code = {area.name for area in areas if area.is_file and area.protection & 4}
    found: dict[str, set[int]] = {}
    with (process / "pagemap").open("rb", buffering=0) as pagemap:
        for area in areas:
            if area.name not in with_code:
                continue
            entries = array(
                "Q", os.pread(pagemap.fileno(), (area.end - area.start) // PAGE * 8, area.start // PAGE * 8)
            )
            first = area.offset // PAGE
            pages = {first + number for number, entry in enumerate(entries) if entry & PRESENT_OR_SWAPPED}
            found.setdefault(area.name, set()).update(pages)
    return {path: frozenset(pages) for path, pages in found.items()}
