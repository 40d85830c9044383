"""Fetches many objects of known size in parallel pieces, resumed after an interruption.

Each object becomes a file of its final size in the folder of unfinished downloads (`parts`), filled piece by piece. A
piece counts as complete when its number stands in the file beside it, which is written after the piece.
"""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from contextvars import copy_context
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from prebake.errors import SourceError
from prebake_build.files.progress import Progress
from prebake_build.sources import parts

T = TypeVar("T")

PIECE = 16 << 20
"""Bytes per request: large enough that its latency does not matter, small enough that little is lost."""
THREADS = 8
"""Requests at a time. One connection to a store brings 50 to 100 MB/s, whatever the network allows."""

Read = Callable[[str, int, int], bytes]
"""The bytes from `start` up to `end` of the object at a path of the store."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Remote:
    """One object of a store."""

    path: str
    """Path in the store."""
    name: str
    """Path in the checkpoint."""
    size: int
    version: str
    """What changes when the object does: its ETag, or its time of modification."""


@dataclass(slots=True)
class _Growing:
    """One object and its unfinished file."""

    remote: Remote
    part: Path
    done: Path
    complete: set[int]
    lock: threading.Lock = field(default_factory=threading.Lock)

    def missing(self) -> Iterator[tuple[_Growing, int]]:
        for number in range(-(-self.remote.size // PIECE)):
            if number not in self.complete:
                yield self, number

    def length(self, number: int) -> int:
        return min(PIECE, self.remote.size - number * PIECE)


def in_parallel(function: Callable[[T], object], items: Iterable[T], threads: int = THREADS) -> None:
    """Call the function with each item, in threads that see this thread's context.

    Raises the first error; then calls that have not begun are dropped, and those under way are waited for.
    """
    with ThreadPoolExecutor(threads) as pool:
        calls = [pool.submit(copy_context().run, function, item) for item in items]
        try:
            for call in calls:
                call.result()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def fetch_all(remotes: Sequence[Remote], read: Read, folder: Path, uri: str) -> None:
    """Write every object below `folder` under its name; `uri` begins messages.

    `read` is called from several threads. Raises SourceError if it returns another number of bytes, and what it raises;
    then the pieces so far are kept.
    """
    kept = parts.folder_or(folder)
    growing = [_open(remote, kept, uri) for remote in remotes]
    total = sum(remote.size for remote in remotes)
    before = sum(one.length(number) for one in growing for number in one.complete)
    if (free := shutil.disk_usage(kept).free) < total - before:
        raise SourceError(
            f"{uri}: needs {total - before:,} bytes, but {kept} has {free:,} free: free some space, run `prebake cache "
            "prune`, or put the cache elsewhere with --cache or PREBAKE_CACHE"
        )
    pieces = [piece for one in growing for piece in one.missing()]
    with Progress(uri, total, done=before) as progress:

        def bring(piece: tuple[_Growing, int]) -> None:
            _bring(*piece, read, uri)
            progress.add(piece[0].length(piece[1]))

        in_parallel(bring, pieces)
    for one in growing:
        target = folder / one.remote.name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(one.part, target)
        one.done.unlink(missing_ok=True)


def _open(remote: Remote, kept: Path, uri: str) -> _Growing:
    name = parts.name_of(uri, remote.path, remote.size, remote.version, PIECE)
    part, done = kept / f"{name}.part", kept / f"{name}.done"
    complete: set[int] = set()
    if part.is_file() and part.stat().st_size == remote.size and done.is_file():
        with suppress(OSError, ValueError):
            complete = {int(line) for line in done.read_text().split("\n")[:-1]}  # a last line without end is cut off
            complete &= set(range(-(-remote.size // PIECE)))
    if not complete:
        done.unlink(missing_ok=True)
        with part.open("wb") as file:
            file.truncate(remote.size)
    return _Growing(remote, part, done, complete)


def _bring(one: _Growing, number: int, read: Read, uri: str) -> None:
    start, length = number * PIECE, one.length(number)
    data = read(one.remote.path, start, start + length)
    if len(data) != length:
        raise SourceError(
            f"{uri}: {one.remote.path}: expected {length:,} bytes from byte {start:,}, found {len(data):,}: the object "
            "changed meanwhile"
        )
    with one.part.open("r+b") as file:
        os.pwrite(file.fileno(), data, start)
    with one.lock, one.done.open("a") as file:
        file.write(f"{number}\n")
