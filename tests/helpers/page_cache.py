"""What of a file is in the page cache, and forgetting it."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

import pytest


def cached(path: Path) -> float:
    """The share of the file's pages that are in the page cache (man 2 mincore)."""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, flags=mmap.MAP_PRIVATE) as pages:
        found = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        start = ctypes.c_char.from_buffer(pages)
        failed = ctypes.CDLL(None).mincore(ctypes.c_void_p(ctypes.addressof(start)), ctypes.c_size_t(size), found)
        del start
    assert failed == 0
    return sum(page & 1 for page in found) / len(found)


def forget(path: Path) -> None:
    """Drop the file's pages; skips where its file system keeps them anyway (tmpfs)."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    if cached(path) > 0.5:
        pytest.skip("this file system keeps its pages in memory")
