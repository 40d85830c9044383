"""What the kernel tells of a stopped process: its mappings, which of their pages are its own, and their contents.

man 5 proc_pid_maps and proc_pid_pagemap.
"""

from __future__ import annotations

import os
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prebake.snapshot.table import PAGE

PRESENT_OR_SWAPPED = 3 << 62
OF_FILE = 1 << 61
"""The page is a file's own (or shared memory), and no private copy."""

_LINE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) ([-r])([-w])([-x])([ps]) ([0-9a-f]+) \S+ \d+ *(.*)")
_ESCAPE = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, kw_only=True, slots=True)
class Area:
    """One line of `/proc/PID/maps`."""

    start: int
    end: int
    protection: int
    """1 read, 2 write, 4 execute."""
    shared: bool
    offset: int
    name: str
    """A path, a name in brackets, or empty for anonymous memory."""

    @property
    def is_file(self) -> bool:
        return self.name.startswith("/")

    @property
    def is_anonymous(self) -> bool:
        return not self.is_file and (
            not self.name or self.name in ("[heap]", "[stack]") or self.name.startswith("[anon")
        )


def parse_areas(text: str) -> list[Area]:
    """The lines of a `maps` file. Raises ValueError for other text."""
    areas = []
    for line in text.splitlines():
        found = _LINE.fullmatch(line)
        if not found:
            raise ValueError(f"cannot read {line!r}")
        start, end, *letters, offset, name = found.groups()
        read, write, execute = (letter != "-" for letter in letters[:3])
        areas.append(Area(
            start=int(start, 16), end=int(end, 16), protection=read | write << 1 | execute << 2,
            shared=letters[3] == "s", offset=int(offset, 16), name=_ESCAPE.sub(lambda m: chr(int(m[1], 8)), name),
        ))  # fmt: skip
    return areas


class Stopped:
    """A stopped process whose memory this one may read: its child, of the same user."""

    def __init__(self, pid: int) -> None:
        self.folder = Path(f"/proc/{pid}")
        self.areas = parse_areas((self.folder / "maps").read_bytes().decode("utf-8", "surrogateescape"))
        self._memory = os.open(self.folder / "mem", os.O_RDONLY | os.O_CLOEXEC)
        self._pages = os.open(self.folder / "pagemap", os.O_RDONLY | os.O_CLOEXEC)

    def close(self) -> None:
        os.close(self._memory)
        os.close(self._pages)

    def read(self, start: int, size: int) -> bytes:
        """Raises OSError if the memory cannot be read."""
        parts = []
        while size:
            part = os.pread(self._memory, min(size, 1 << 24), start)
            if not part:
                raise OSError(f"memory at {start:#x} ends early")
            parts.append(part)
            start, size = start + len(part), size - len(part)
        return b"".join(parts)

    def own_runs(self, area: Area) -> Iterator[tuple[int, int]]:
        """Start and end of each run of pages that the process has written, or that are not a file's."""
        begin = None
        at = area.start
        while at < area.end:
            count = min((area.end - at) // PAGE, 1 << 16)
            entries = array("Q", os.pread(self._pages, count * 8, at // PAGE * 8))
            if len(entries) != count:
                raise OSError(f"{self.folder}/pagemap ends early")
            if begin is None and not any(entries):
                at += count * PAGE
                continue
            for index, entry in enumerate(entries):
                own = entry & PRESENT_OR_SWAPPED and not entry & OF_FILE
                if own and begin is None:
                    begin = at + index * PAGE
                elif not own and begin is not None:
                    yield begin, at + index * PAGE
                    begin = None
            at += count * PAGE
        if begin is not None:
            yield begin, area.end

    def memory_map(self) -> tuple[int, ...]:
        """The first eleven fields of `struct prctl_mm_map`, from `/proc/PID/stat`."""
        fields = (self.folder / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        number = {index + 3: int(value) for index, value in enumerate(fields[1:], 1)}
        brk = max((area.end for area in self.areas if area.name == "[heap]"), default=number[47])
        return (number[26], number[27], number[45], number[46], number[47], brk, number[28],
                number[48], number[49], number[50], number[51])  # fmt: skip
