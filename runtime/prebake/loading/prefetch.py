"""Reading mapped weights into the page cache before they are used.

Files are read through, a piece at a time, by a thread that holds neither the interpreter's lock nor the lock of the
address space. The usual hints do worse, measured in docs/decisions/0009: `posix_fadvise(WILLNEED)` reads no more
than the disk's read-ahead in one call and makes single pages, each a fault of its own later; `MADV_POPULATE_READ`
holds up every allocation of the first answer.

No more is read than memory is free, by the system's and the control groups' account: beyond that each page would push
out another that a start has just read. `PREBAKE_PREFETCH=0` turns it off.
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

logger = logging.getLogger(__name__)

PIECE = 1 << 20
"""Bytes read at once: after each the thread waits for the interpreter's lock."""


class Prefetch:
    """Reads files into the page cache, in order, from a thread that lives as long as there are any.

    A hint and nothing more: what is absent or cannot be read is passed over. If no thread can start (a limit on the
    number of processes), the files stay queued until the next `add`. Pieces that are in the page cache cost a few
    system calls each.
    """

    def __init__(self, budget: Callable[[], int | None] = free_memory) -> None:
        """`budget` tells how many bytes may be read; None: as many as there are."""
        self._budget = budget
        self._lock = threading.Lock()
        self._unread: list[tuple[Path, Iterator[None]]] = []
        self._thread: threading.Thread | None = None
        self._warned = False

    def add(self, paths: Iterable[Path]) -> None:
        """Read these, after those that were added before. What does not fit into memory is left out."""
        fitting = self._fitting(paths)
        with self._lock:
            self._unread += [(path, _through(path)) for path in fitting]
            if self._unread and self._thread is None:
                self._start()

    def first(self, paths: Iterable[Path]) -> None:
        """Somebody waits for these: what is left of them is read before anything else."""
        if not self._unread:
            return
        wanted = set(paths)
        with self._lock:
            self._unread.sort(key=lambda unread: unread[0] not in wanted)  # the others stay in order

    def join(self) -> None:
        """Wait until all are read."""
        if (thread := self._thread) is not None:
            thread.join()

    def _start(self) -> None:
        thread = threading.Thread(target=self._work, name="prebake-prefetch", daemon=True)
        try:
            thread.start()  # its work begins once the caller lets go of the lock
        except RuntimeError as error:
            if not self._warned:
                logger.warning(
                    "weights are not read ahead: no thread could start (%s); the next load tries again", error
                )
            self._warned = True
        else:
            self._thread = thread

    def _fitting(self, paths: Iterable[Path]) -> list[Path]:
        """Those for which there is memory, in order, beside those that are still to be read."""
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
                logger.info("%s: not prefetched: it has %d bytes, and %d are free", path, size, max(0, free))
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
    except OSError:  # it is passed over when it is to be read
        return 0


def _through(path: Path) -> Iterator[None]:
    with suppress(OSError):
        yield from through(path, memoryview(bytearray(PIECE)))
