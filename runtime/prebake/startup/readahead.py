"""Readahead: a separate process reads a cold start's files into the page cache before they are needed.

A cold start waits for its disk a few kilobytes at a time: for page faults in libraries of which it needs a seventh, and
for 1,400 bytecode files, one after the other. `prebake check --record-reads FILE` records which file ranges a start
touched (`recorder`); if `PREBAKE_READAHEAD` names that file, later starts read these ranges ahead, in order of use. The
list is a hint: files that are missing or unreadable are skipped, and the start works without it.

The reader is a process because a thread would need the GIL again after every system call, which takes up to 5 ms each
while modules are executed. The process runs this file as a script without `site`, with few imports.

Format: one file per line with an absolute path, and a tab before the ranges::

    prebake readahead 1
    /opt/…/torch/                                       the names in a folder
    /opt/…/torch/__pycache__/__init__.cpython-311.pyc   the whole file
    /opt/…/torch/lib/libtorch_cpu.so    0+16711680 …    these ranges: first byte + length
    @torch._C                                           its import waits until all lines above are read

The import of a module with large libraries waits for the reader: page faults that overtake the reader compete with it
for the disk, and make the kernel read the data around each fault.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext, suppress

ENV = "PREBAKE_READAHEAD"
HEADER = "prebake readahead 1"
PIECE = 1 << 18
"""Bytes per read."""
READERS = 2
"""Threads of the reader. The start's own reads wait behind one piece per thread; more threads are not faster."""
LONGEST = 10.0
"""Maximum seconds that an import waits for the reader: a hint must not block a start."""

Ranges = tuple[tuple[int, int], ...]
"""First byte and length of each range of a file; empty for the whole file."""
Entry = tuple[str, Ranges]
Part = tuple[list[Entry], "str | None"]
"""Files that are read together, and the module whose import waits for them."""


def begin() -> None:
    """Start reading the files that `PREBAKE_READAHEAD` lists, unless they are in the page cache. Safe to call again.

    Does nothing if the variable is unset, its file does not exist, or no process can be started.
    """
    path = os.environ.get(ENV)
    if not path or not sys.executable or any(isinstance(finder, _Reader) for finder in sys.meta_path):
        return
    try:
        with open(path, encoding="utf-8") as listed:  # noqa: PTH123  # the reader must not import pathlib
            lines = listed.read().splitlines()
        from prebake.startup.warm import is_warm  # only if there is a list; the reader does not import it

        if not is_warm(lines):
            _Reader(path, [module for _, module in parse(lines)]).start()
    except (OSError, ValueError, AttributeError) as error:
        _say_why_not(path, error)


def _say_why_not(path: str, error: Exception) -> None:
    import logging

    level = logging.DEBUG if isinstance(error, FileNotFoundError) else logging.WARNING
    logging.getLogger(__name__).log(level, "%s: nothing is read ahead: %s", path, error)


class _Reader:
    """The reader process, and a module finder that makes imports wait for it."""

    def __init__(self, path: str, modules: Sequence[str | None]) -> None:
        self._path = path
        self._read = [threading.Event() for _ in modules]
        """One event for each part of the list."""
        self._waiting = {module: event for module, event in zip(modules, self._read, strict=True) if module}

    def start(self) -> None:
        """Start the process. Raises OSError if that fails."""
        told, tells = os.pipe()
        try:
            process = os.posix_spawn(
                sys.executable, [sys.executable, "-ISEB", __file__, self._path], os.environ,
                file_actions=[(os.POSIX_SPAWN_DUP2, tells, 1)],
            )  # fmt: skip
        except OSError:
            os.close(told)
            raise
        finally:
            os.close(tells)
        threading.Thread(target=self._follow, args=(process, told), name="prebake-readahead", daemon=True).start()
        os.register_at_fork(after_in_child=self._let_go)  # no thread follows the reader there
        sys.meta_path.insert(0, self)  # a finder only needs find_spec

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Find nothing, but make the import of a listed module wait. (An import in here would call it recursively.)"""
        if (event := self._waiting.pop(name, None)) is not None:
            timeline = sys.modules.get("prebake.telemetry.timeline")
            with timeline.span(f"wait for the disk: {name}") if timeline else nullcontext():
                event.wait(LONGEST)

    def _let_go(self) -> None:
        for event in self._read:
            event.set()

    def _follow(self, process: int, told: int) -> None:
        """Set an event for each byte from the reader, which writes one after each part."""
        # imports nothing: the process may fork meanwhile
        for event in self._read:
            if not os.read(told, 1):
                break
            event.set()
        self._let_go()  # the reader may have ended early
        os.close(told)
        with suppress(ChildProcessError):  # other code may have waited for all children of this process
            os.waitpid(process, 0)
        if timeline := sys.modules.get("prebake.telemetry.timeline"):
            timeline.mark("read ahead")


def parse(lines: Sequence[str]) -> list[Part]:
    """The parts of a list, from its lines. Raises ValueError for malformed lines."""
    if not lines or lines[0] != HEADER:
        raise ValueError(f"expected {HEADER!r} in its first line, found {''.join(lines[:1])[:40]!r}")
    parts: list[Part] = []
    entries: list[Entry] = []
    for line in lines[1:]:
        path, _, ranges = line.partition("\t")
        if path.startswith("@"):
            parts.append((entries, path[1:]))
            entries = []
            continue
        pairs = [pair.partition("+") for pair in ranges.split()]
        entries.append((path, tuple((int(begin), int(length)) for begin, _, length in pairs)))
    return [*parts, (entries, None)]


def text_of(parts: Sequence[Part]) -> str:
    """The text of a list, which `parse` reads."""
    lines = [HEADER]
    for entries, module in parts:
        for path, ranges in entries:
            lines.append(
                "\t".join([path, *([" ".join(f"{begin}+{length}" for begin, length in ranges)] * bool(ranges))])
            )
        lines += [f"@{module}"] if module else []
    return "\n".join(lines) + "\n"


def read(entries: Sequence[Entry], readers: int = READERS) -> None:
    """Read the listed files into the page cache, in order, with `readers` threads."""
    pieces, lock = _pieces(entries), threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(PIECE))
        while True:
            with lock:
                path, part = next(pieces, ("", None))
            if not path:
                return
            with suppress(OSError):  # the code that needs the file gets the error itself
                _read(path, part, buffer)

    others = [threading.Thread(target=work, daemon=True) for _ in range(1, readers)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()


def _pieces(entries: Sequence[Entry]) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """The pieces that a thread reads at a time: a whole file, or at most `PIECE` bytes of a range."""
    for path, ranges in entries:
        if not ranges:
            yield path, None
        for part in ranges:
            for piece in _cut(*part, PIECE):
                yield path, piece


def _cut(begin: int, length: int, size: int) -> Iterator[tuple[int, int]]:
    """First byte and length of each piece of at most `size` bytes."""
    for offset in range(begin, begin + length, size):
        yield offset, min(size, begin + length - offset)


def _read(path: str, part: tuple[int, int] | None, buffer: memoryview) -> None:
    if path.endswith("/"):
        os.listdir(path)  # noqa: PTH208
        return
    if not part:
        for _ in through(path, buffer):
            pass
        return
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        # no kernel readahead: reading a range in pieces would look like a sequential read of the whole file
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        _have(descriptor, *part, buffer)
    finally:
        os.close(descriptor)


def through(path: str | os.PathLike[str], buffer: memoryview) -> Iterator[None]:
    """Read a whole file into the page cache, one buffer's size per item of the iterator.

    Raises OSError if it can't be read.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        for offset, length in _cut(0, os.fstat(descriptor).st_size, len(buffer)):
            _have(descriptor, offset, length, buffer)
            yield
    finally:
        os.close(descriptor)


def _have(descriptor: int, offset: int, length: int, buffer: memoryview) -> None:
    if not is_cached(descriptor, offset, length):
        os.preadv(descriptor, [buffer[:length]], offset)


def is_cached(descriptor: int, offset: int, length: int) -> bool:
    """Whether both ends can be read without waiting for a disk; True if the length is 0."""
    ends = (max(0, offset + length - 1), offset)
    try:
        return all(os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) >= 0 for at in ends)
    except (OSError, AttributeError):  # the read would block, or RWF_NOWAIT is not supported
        return False


def main(path: str) -> None:
    """Run the reader process."""
    with open(path, encoding="utf-8") as listed:  # noqa: PTH123
        parts = parse(listed.read().splitlines())
    try:
        for entries, _ in parts:
            read(entries)
            os.write(1, b".")
    except BrokenPipeError:
        pass  # the starting process has ended


if __name__ == "__main__":
    main(sys.argv[1])
