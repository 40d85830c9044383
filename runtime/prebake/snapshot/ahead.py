"""The list of what a start touches first, which the restorer reads ahead: made in a rehearsal, kept in the table.

Used pages with at most `GAP` others between them are one reading: disks count requests, and each page between them
takes 20 µs from a disk of 200 MB/s. Putting these pages side by side in memory.img instead needs four times the mappings,
10 ms at each start, and was not faster cold (docs/decisions/0017).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from prebake.snapshot.folder import read_table, replace_table
from prebake.snapshot.table import MEMORY_IMG, PAGE, Reading, Table
from prebake.snapshot.use import Used

GAP = 8
"""Pages."""
LONGEST = 1 << 30
"""Maximum bytes of one reading (READ_AHEAD_LIMIT of `native/table.h`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Listed:
    """Bytes that are read ahead."""

    ready: int
    """For the start."""
    answered: int
    """For the first answer, besides."""
    readings: int

    def __str__(self) -> str:
        return (f"snapshot: reads ahead {self.ready / 1e6:.0f} MB for the start and {self.answered / 1e6:.0f} MB for the "
                f"first answer, in {self.readings} ranges")  # fmt: skip


def add_list(folder: Path, ready: Used, answered: Used) -> Listed:
    """Have the restorer read ahead what was used. Raises SnapshotError; then the snapshot stays as it was."""
    table = read_table(folder)
    first = [*_of_image(ready.image), *_of_files(table, {path: pages | {0} for path, pages in _all(table, ready)})]
    later = [*_of_image(answered.image - ready.image),
             *_of_files(table, {path: pages - ready.files.get(path, frozenset()) for path, pages in _all(table, answered)})]  # fmt: skip
    replace_table(folder, replace(table, readings=[*first, *later]))
    return Listed(ready=sum(reading.bytes for reading in first), answered=sum(reading.bytes for reading in later),
                  readings=len(first) + len(later))  # fmt: skip


def _all(table: Table, used: Used) -> Iterator[tuple[str, frozenset[int]]]:
    """Each mapped file and its used pages; the restorer compares the first page of each."""
    for file in table.files:
        if file.head:
            yield file.path, used.files.get(file.path, frozenset())


def _of_image(pages: Iterable[int]) -> Iterator[Reading]:
    for begin, end in runs(pages):
        yield from _readings(MEMORY_IMG, begin, end)


def _of_files(table: Table, pages: dict[str, frozenset[int]]) -> Iterator[Reading]:
    for index, file in enumerate(table.files):
        for begin, end in runs(pages.get(file.path, ())):
            yield from _readings(index, begin, end)


def _readings(file: int, begin: int, end: int) -> Iterator[Reading]:
    for offset in range(begin * PAGE, end * PAGE, LONGEST):
        yield Reading(file=file, offset=offset, bytes=min(LONGEST, end * PAGE - offset))


def runs(pages: Iterable[int]) -> Iterator[tuple[int, int]]:
    """First page, and the one after the last, of each run of pages with at most `GAP` others between them."""
    begin = end = -1
    for page in sorted(pages):
        if begin >= 0 and page - end <= GAP:
            end = page + 1
            continue
        if begin >= 0:
            yield begin, end
        begin, end = page, page + 1
    if begin >= 0:
        yield begin, end
