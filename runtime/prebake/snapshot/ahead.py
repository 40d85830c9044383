"""The list of what a start touches first, which the restorer reads ahead: made in a rehearsal, kept in the table.

Used pages with at most `GAP` others between them are one reading: disks count requests, and each page between them
takes 20 µs from a disk of 200 MB/s. Putting these pages side by side in memory.img instead needs four times the
mappings, which cost 10 ms at each start, and was not faster cold (docs/decisions/0017).
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
        ready, answered = (f"{size / 1e6:.0f} MB" for size in (self.ready, self.answered))
        return (f"snapshot: reads ahead {ready} for the start and {answered} for the first answer, in {self.readings} "
                "ranges")  # fmt: skip


def add_list(folder: Path, ready: Used, answered: Used) -> Listed:
    """Have the restorer read ahead what was used. Raises SnapshotError; then the snapshot stays as it was."""
    table = read_table(folder)
    compared = [file.path for file in table.files if file.head]  # the restorer reads the first page of each
    first = {path: ready.files.get(path, frozenset()) | {0} for path in compared}
    later = {path: answered.files.get(path, frozenset()) - first[path] for path in compared}
    for_ready = [*_of_image(ready.image), *_of_files(table, first)]
    for_answer = [*_of_image(answered.image - ready.image), *_of_files(table, later)]
    replace_table(folder, replace(table, readings=[*for_ready, *for_answer]))
    sizes = [sum(reading.bytes for reading in readings) for readings in (for_ready, for_answer)]
    return Listed(ready=sizes[0], answered=sizes[1], readings=len(for_ready) + len(for_answer))


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
