"""What a start reads, read before it asks: a process of its own goes through a list, in the order of use.

A cold start waits for its disk a few kilobytes at a time: for page faults in libraries of which it needs a seventh, and
for 1,400 files of byte code, one after the other. `prebake check --record-reads FILE` writes down what a start touched
(`recorder`), and a start whose `PREBAKE_READAHEAD` names that file has it read ahead. The list is a hint:
what is absent or cannot be read is passed over, and the start is the same without it.

The reader is a process because a thread would have to take the interpreter's lock back after every system call, up
to 5 ms each while modules are executed. It is this file, run as a script without `site`, and imports next to nothing.

Format, one file a line, paths absolute, a tab before ranges::

    prebake readahead 1
    /opt/…/torch/                                       a folder's names
    /opt/…/torch/__pycache__/__init__.cpython-311.pyc   whole
    /opt/…/torch/lib/libtorch_cpu.so    0+16711680 …    these: first byte + length
    @torch._C                                           whose import waits until all above are read

An import waits where it brings large libraries: page faults that overtake the reader take the disk from it, and have
the kernel read whatever lies around them.
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
"""Bytes read at once."""
READERS = 2
"""Threads. What the start reads for itself waits behind a piece of each: more read no sooner, and hold it up."""
LONGEST = 10.0
"""Seconds that an import waits for the reader: a hint must not stop a start."""

Ranges = tuple[tuple[int, int], ...]
"""First byte and length of each part of a file that is read; none: the whole file."""
Entry = tuple[str, Ranges]
Part = tuple[list[Entry], "str | None"]
"""What is read together, and the module whose import waits for it."""


def begin() -> None:
    """Start reading what `PREBAKE_READAHEAD` lists, unless it is in the page cache already. Safe to call again.

    Does nothing where the variable is not set or names no file, or where no process can be started.
    """
    path = os.environ.get(ENV)
    if not path or not sys.executable or any(isinstance(finder, _Reader) for finder in sys.meta_path):
        return
    try:
        with open(path, encoding="utf-8") as listed:  # noqa: PTH123  # pathlib would be an import of the reader
            lines = listed.read().splitlines()
        from prebake.startup.warm import is_warm  # not an import of the reader, and only where there is a list

        if not is_warm(lines):
            _Reader(path, [module for _, module in parse(lines)]).start()
    except (OSError, ValueError, AttributeError) as error:
        _say_why_not(path, error)


def _say_why_not(path: str, error: Exception) -> None:
    import logging

    level = logging.DEBUG if isinstance(error, FileNotFoundError) else logging.WARNING
    logging.getLogger(__name__).log(level, "%s: nothing is read ahead: %s", path, error)


class _Reader:
    """The process that reads, and a finder of modules that has imports wait for it."""

    def __init__(self, path: str, modules: Sequence[str | None]) -> None:
        self._path = path
        self._read = [threading.Event() for _ in modules]
        """One for each part of the list."""
        self._waiting = {module: event for module, event in zip(modules, self._read, strict=True) if module}

    def start(self) -> None:
        """Raises OSError where no process can be started."""
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
        os.register_at_fork(after_in_child=self._let_go)  # nobody follows the reader there
        sys.meta_path.insert(0, self)  # a finder needs no more than find_spec

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        """Finds nothing, and has whoever imports one of these modules wait. (To import something here would ask it.)"""
        if (event := self._waiting.pop(name, None)) is not None:
            timeline = sys.modules.get("prebake.telemetry.timeline")
            with timeline.span(f"wait for the disk: {name}") if timeline else nullcontext():
                event.wait(LONGEST)

    def _let_go(self) -> None:
        for event in self._read:
            event.set()

    def _follow(self, process: int, told: int) -> None:
        """The reader writes a byte for each part that it is through with."""
        # nothing is imported here: a fork may come meanwhile
        for event in self._read:
            if not os.read(told, 1):
                break
            event.set()
        self._let_go()  # it may have ended early
        os.close(told)
        with suppress(ChildProcessError):  # where somebody waits for all children of this process, they saw it end
            os.waitpid(process, 0)
        if timeline := sys.modules.get("prebake.telemetry.timeline"):
            timeline.mark("read ahead")


def parse(lines: Sequence[str]) -> list[Part]:
    """The parts of a list, from its lines. Raises ValueError for lines that are none."""
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
    """The list whose lines `parse` reads."""
    lines = [HEADER]
    for entries, module in parts:
        for path, ranges in entries:
            lines.append(
                "\t".join([path, *([" ".join(f"{begin}+{length}" for begin, length in ranges)] * bool(ranges))])
            )
        lines += [f"@{module}"] if module else []
    return "\n".join(lines) + "\n"


def read(entries: Sequence[Entry], readers: int = READERS) -> None:
    """Read what is listed into the page cache, in order, with as many threads."""
    pieces, lock = _pieces(entries), threading.Lock()

    def work() -> None:
        buffer = memoryview(bytearray(PIECE))
        while True:
            with lock:
                path, part = next(pieces, ("", None))
            if not path:
                return
            with suppress(OSError):  # whoever needs it will say what is wrong with it
                _read(path, part, buffer)

    others = [threading.Thread(target=work, daemon=True) for _ in range(1, readers)]
    for thread in others:
        thread.start()
    work()
    for thread in others:
        thread.join()


def _pieces(entries: Sequence[Entry]) -> Iterator[tuple[str, tuple[int, int] | None]]:
    """What one thread reads at a time: a whole file, or at most `PIECE` bytes of one."""
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
        # no more than was asked for: pieces of a range would look like a file that is read to its end
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)
        _have(descriptor, *part, buffer)
    finally:
        os.close(descriptor)


def through(path: str | os.PathLike[str], buffer: memoryview) -> Iterator[None]:
    """Read a whole file into the page cache, as much as the buffer holds whenever the next item is asked for.

    Raises OSError where it cannot be read.
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
    """Whether both ends could be read without waiting for a disk; those of nothing can."""
    ends = (max(0, offset + length - 1), offset)
    try:
        return all(os.preadv(descriptor, [bytearray(1)], at, os.RWF_NOWAIT) >= 0 for at in ends)
    except (OSError, AttributeError):  # it would wait; or the file system, or the system, cannot tell
        return False


def main(path: str) -> None:
    """The reader."""
    with open(path, encoding="utf-8") as listed:  # noqa: PTH123
        parts = parse(listed.read().splitlines())
    try:
        for entries, _ in parts:
            read(entries)
            os.write(1, b".")
    except BrokenPipeError:
        pass  # the start is over: nobody needs the rest


if __name__ == "__main__":
    main(sys.argv[1])
