"""Reading mapped weights into the page cache before they are used.

The file is read through, a piece at a time, by a thread that holds neither the interpreter's lock nor the lock of the
address space. The usual hints do worse, measured in docs/decisions/0009: `posix_fadvise(WILLNEED)` reads no more
than the disk's read-ahead in one call and makes single pages, each a fault of its own later; `MADV_POPULATE_READ`
holds up every allocation of the first answer.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

PIECE = 1 << 20
"""Bytes read at once."""


def prefetch(paths: Iterable[Path]) -> threading.Thread:
    """Start reading the files into the page cache, in order, from a thread of its own.

    A hint and nothing more: what is absent or cannot be read is passed over. Pieces that are in the page
    cache cost a system call each.
    """
    thread = threading.Thread(target=_read_all, args=(tuple(paths),), name="prebake-prefetch", daemon=True)
    thread.start()
    return thread


def _read_all(paths: tuple[Path, ...]) -> None:
    piece = bytearray(PIECE)
    for path in paths:
        with suppress(OSError):  # whoever needs the file will say what is wrong with it
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                _read(descriptor, piece)
            finally:
                os.close(descriptor)


def _read(descriptor: int, piece: bytearray) -> None:
    size = os.fstat(descriptor).st_size
    for offset in range(0, size, PIECE):
        # both ends: the kernel's own read-ahead may have stopped in the middle of a piece
        if not all(_is_cached(descriptor, end) for end in (min(offset + PIECE, size) - 1, offset)):
            os.preadv(descriptor, [piece], offset)


def _is_cached(descriptor: int, offset: int) -> bool:
    """Whether the byte could be read without waiting for a disk."""
    try:
        return os.preadv(descriptor, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except (OSError, AttributeError):  # it would wait; or the file system, or the system, cannot tell
        return False
