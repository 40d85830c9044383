"""What a start reads, read before it asks: a process of its own goes through a list, in the order of use.

A cold start waits for its disk a few kilobytes at a time: for page faults in libraries of which it needs a seventh, and
for 1,400 files of byte code, one after the other. `prebake check --record-reads FILE` writes down what a start touched
(`prebake.recorder`), and a start whose `PREBAKE_READAHEAD` names that file has it read ahead. The list is a hint:
what is absent or cannot be read is passed over, and the start is the same without it.

The reader is a process because a thread would have to take the interpreter's lock back after every system call, up
to 5 ms each while modules are executed. It is this file, run as a script without `site`, and imports next to nothing.

Format, one file a line, paths absolute, a tab before ranges::

    prebake readahead 1
    /opt/…/torch/__init__.pyc                           whole
    /opt/…/torch/lib/libtorch_cpu.so    0+16711680 …    these: first byte + length
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence

HEADER = "prebake readahead 1"
PIECE = 1 << 20
"""Bytes read at once."""
READERS = 4
"""Threads, so that as many requests are under way: disks behind a network need several."""
SAMPLES = 64
"""Entries that are looked at first: where all are in the page cache, the start is warm, and no reader begins."""

Ranges = tuple[tuple[int, int], ...]
"""First byte and length of each part that is read; none: the whole file."""
Entry = tuple[str, Ranges]


def begin() -> None:
    """Start reading what `PREBAKE_READAHEAD` lists, unless it is in the page cache already.

    Does nothing where the variable is not set or names no file, or where no process can be started.
    """
    from prebake import layout  # the reader, which is this file as a script, does without

    path = os.environ.get(layout.ENV_READAHEAD)
    if not path or not sys.executable:
        return
    try:
        with open(path, encoding="utf-8") as listed:  # noqa: PTH123  # pathlib would be an import of the reader
            lines = listed.read().splitlines()
        if all(map(_is_there, parse([lines[0], *lines[1 :: len(lines) // SAMPLES + 1]]))):
            return
        reader = os.posix_spawn(sys.executable, [sys.executable, "-ISEB", __file__, path], os.environ)
    except (OSError, ValueError, IndexError, AttributeError) as error:
        _say_why_not(path, error)
        return
    threading.Thread(target=_reap, args=(reader,), name="prebake-readahead", daemon=True).start()


def _say_why_not(path: str, error: Exception) -> None:
    import logging

    level = logging.DEBUG if isinstance(error, FileNotFoundError) else logging.WARNING
    logging.getLogger(__name__).log(level, "%s: nothing is read ahead: %s", path, error)


def _reap(reader: int) -> None:
    from contextlib import suppress

    from prebake import timeline

    with suppress(ChildProcessError):  # where somebody waits for all children of this process, they saw it end
        os.waitpid(reader, 0)
        timeline.mark("read ahead")


def parse(lines: Sequence[str]) -> list[Entry]:
    """Path and ranges of each line after the header. Raises ValueError for lines that are no such list."""
    if not lines or lines[0] != HEADER:
        raise ValueError(f"expected {HEADER!r} in its first line, found {''.join(lines[:1])[:40]!r}")
    found = []
    for line in lines[1:]:
        path, _, ranges = line.partition("\t")
        parts = [part.partition("+") for part in ranges.split()]
        found.append((path, tuple((int(begin), int(length)) for begin, _, length in parts)))
    return found


def text_of(entries: Sequence[Entry]) -> str:
    """The list as `parse` reads its lines."""
    lines = [HEADER]
    for path, ranges in entries:
        lines.append("\t".join([path, " ".join(f"{begin}+{length}" for begin, length in ranges)] if ranges else [path]))
    return "\n".join(lines) + "\n"


def read(entries: Sequence[Entry], readers: int = READERS) -> int:
    """Read what is listed into the page cache, in order; the number of bytes that were not there."""
    pieces, lock, counts = _pieces(entries), threading.Lock(), [0] * readers

    def work(number: int) -> None:
        buffer = memoryview(bytearray(PIECE))
        while True:
            with lock:
                piece = next(pieces, None)
            if piece is None:
                return
            counts[number] += _read(*piece, buffer)

    others = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(1, readers)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    return sum(counts)


def _pieces(entries: Sequence[Entry]) -> Iterator[tuple[str, int, int]]:
    for path, ranges in entries:
        for begin, length in ranges or ((0, _size(path)),):
            for offset in range(begin, begin + length, PIECE):
                yield path, offset, min(PIECE, begin + length - offset)


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size  # noqa: PTH116
    except OSError:
        return 0


def _read(path: str, offset: int, length: int, buffer: memoryview) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if not _is_cached(descriptor, offset, length):
                return os.preadv(descriptor, [buffer[:length]], offset)
        finally:
            os.close(descriptor)
    except OSError:
        pass  # whoever needs the file will say what is wrong with it
    return 0


def _is_there(entry: Entry) -> bool:
    path, ranges = entry
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return _is_cached(descriptor, *(ranges[-1] if ranges else (0, os.fstat(descriptor).st_size)))
        finally:
            os.close(descriptor)
    except OSError:
        return True  # nothing to read


def _is_cached(descriptor: int, offset: int, length: int) -> bool:
    """Whether both ends could be read without waiting for a disk; those of nothing can."""
    ends = (max(0, offset + length - 1), offset)
    try:
        return all(os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) >= 0 for at in ends)
    except (OSError, AttributeError):  # it would wait; or the file system, or the system, cannot tell
        return False


if __name__ == "__main__":
    with open(sys.argv[1], encoding="utf-8") as listed:  # noqa: PTH123
        read(parse(listed.read().splitlines()))
