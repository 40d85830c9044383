"""Prefetch: reads mapped weights into the page cache before they are used.

A thread reads the files piece by piece, without holding the GIL or the address-space lock. The usual hints are slower,
as measured in docs/decisions/0009: `posix_fadvise(WILLNEED)` reads at most the disk's read-ahead per call and caches
single pages, each of which causes its own page fault later; `MADV_POPULATE_READ` blocks every allocation of the first
answer.

It reads no more than the free memory of the system and the control groups: beyond that, each page would evict one that
the start has just read. `PREBAKE_PREFETCH=0` turns it off.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from prebake.baked import layout
from prebake.cgroup import free_memory
from prebake.startup.readahead import through
from prebake.startup.warm import seems_warm

logger = logging.getLogger(__name__)

PIECE = 1 << 20
"""Bytes per read; the thread takes the GIL between reads."""


class Prefetch:
    """Reads files into the page cache, in order, in a thread that runs while files are queued.

    It is a hint: files that are missing or unreadable are skipped. If no thread can start (process limit), the files
    stay queued until the next `add`. A file that is already in the page cache costs some samples.
    """

    def __init__(self, budget: Callable[[], int | None] = free_memory) -> None:
        """`budget` returns how many bytes may be read, or None for no limit."""
        self._budget = budget
        self._lock = threading.Lock()
        self._unread: list[tuple[Path, Iterator[None]]] = []
        self._thread: threading.Thread | None = None
        self._warned = False

    def add(self, paths: Iterable[Path]) -> None:
        """Queue these files after those already queued. Files that don't fit into free memory are skipped."""
        fitting = self._fitting(paths)
        with self._lock:
            self._unread += [(path, _through(path)) for path in fitting]
            if self._unread and self._thread is None:
                self._start()

    def first(self, paths: Iterable[Path]) -> None:
        """Move what is left of these files to the front, because a caller waits for them."""
        if not self._unread:
            return
        wanted = set(paths)
        with self._lock:
            self._unread.sort(key=lambda unread: unread[0] not in wanted)  # the others stay in order

    def join(self) -> None:
        """Wait until all queued files are read."""
        if (thread := self._thread) is not None:
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="prebake-prefetch", daemon=True)
        try:
            thread.start()  # it waits until the caller releases the lock
        except RuntimeError as error:
            if not self._warned:
                logger.warning(
                    "weights are not prefetched: can't start a thread (%s); the next load tries again", error
                )
            self._warned = True
        else:
            self._thread = thread

    def _fitting(self, paths: Iterable[Path]) -> list[Path]:
        """The files that fit into free memory, in order, after subtracting those still queued."""
        if os.environ.get(layout.ENV_PREFETCH) == "0":
            return []
        free = self._budget()
        if free is None:
            return list(paths)
        free -= sum(_size(path) for path, _ in self._unread.copy())
        fitting = []
        for path in paths:
            if (size := _size(path)) <= free:
                fitting.append(path)
                free -= size
            else:
                logger.info("%s: not prefetched: %d bytes, %d bytes are free", path, size, max(0, free))
        return fitting

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._unread:
                    self._thread = None
                    return
                unread = self._unread[0]
            try:
                next(unread[1])
            except StopIteration:
                with self._lock:
                    self._unread.remove(unread)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:  # the read skips it
        return 0


def _through(path: Path) -> Iterator[None]:
    with suppress(OSError):
        if not seems_warm(path):
            yield from through(path, memoryview(bytearray(PIECE)))
