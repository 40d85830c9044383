"""Bringing files into the page cache before they are needed, so that disk reads overlap imports.

A file is mapped and the kernel asked to fill the mapping (`MADV_POPULATE_READ`, Linux 5.14), a piece at a time.
`posix_fadvise(WILLNEED)`, the usual hint, does little here: one call reads at most the disk's read-ahead
(`read_ahead_kb`), and pages that come by it are single, so that touching them later takes one fault for each. A
file that was populated lies in large folios, which are mapped many pages at a time: docs/decisions/0009 has figures.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PIECE = 16 << 20
"""Bytes asked for at once; a multiple of every page size."""
_MADV_POPULATE_READ = 22


def prefetch(paths: Iterable[Path]) -> threading.Thread:
    """Start reading the files into the page cache, in order, from a thread of its own.

    A hint and nothing more: what is absent or cannot be read is passed over. Neither the interpreter's lock
    nor a processor is held meanwhile. On a warm cache it costs about 5 ms per GB, in that thread.
    """
    thread = threading.Thread(target=_read_all, args=(tuple(paths),), name="prebake-prefetch", daemon=True)
    thread.start()
    return thread


def _read_all(paths: tuple[Path, ...]) -> None:
    for path in paths:
        with suppress(OSError):  # whoever needs the file will say what is wrong with it
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                if not _populate(descriptor):
                    _read(descriptor)
            finally:
                os.close(descriptor)


def _populate(descriptor: int) -> bool:
    """Whether the file could be mapped, and the kernel filled its mapping."""
    size = os.fstat(descriptor).st_size
    try:
        return size == 0 or _fill(descriptor, size)
    except (OSError, ValueError):  # this file system cannot map
        return False


def _fill(descriptor: int, size: int) -> bool:
    with mmap.mmap(descriptor, size, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE) as pages:
        start = ctypes.c_char.from_buffer(pages)
        madvise = ctypes.CDLL(None).madvise  # called so, it lets other threads run; `mmap.madvise` does not
        try:
            for offset in range(0, size, PIECE):
                address = ctypes.c_void_p(ctypes.addressof(start) + offset)
                if madvise(address, ctypes.c_size_t(min(PIECE, size - offset)), _MADV_POPULATE_READ):
                    return False
        finally:
            del start  # it keeps the mapping from being closed
    return True


def _read(descriptor: int) -> None:
    """Read it through: for kernels that do not know the advice, and file systems that cannot map."""
    piece = bytearray(1 << 20)
    while os.readv(descriptor, [piece]):
        pass
