"""Orders memory.img by use: what a start touches first comes first, and is read ahead in a few large reads.

Three parts follow the first page: what was used until the service was ready, what was used until its first answer, and
the rest; in each part the pages stand in the order of their addresses. Used pages with at most `GAP` others between
them stay together: two more mappings cost 5 µs at each start, a page of memory.img 20 µs from a cold disk of 200 MB/s.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path

from prebake.snapshot.folder import IMAGE, Manifest, finish, new_image, read_table
from prebake.snapshot.table import COPIED, MEMORY_IMG, PAGE, Mapping, Reading, Table, joined
from prebake.snapshot.use import Used

GAP = 8
"""Pages."""
LONGEST = 1 << 30
"""Maximum bytes of one reading (READ_AHEAD_LIMIT of `native/table.h`)."""
READY, ANSWERED, REST = range(3)


@dataclass(frozen=True, kw_only=True, slots=True)
class Arranged:
    """What became of a snapshot."""

    ready: int
    """Bytes of memory.img that are read ahead for the start."""
    answered: int
    """Further bytes for the first answer."""
    libraries: int
    """Bytes of libraries that are read ahead."""
    mappings: int

    def __str__(self) -> str:
        return (f"snapshot: memory.img begins with {self.ready / 1e6:.0f} MB for the start and "
                f"{self.answered / 1e6:.0f} MB for the first answer; these and {self.libraries / 1e6:.0f} MB of "
                f"libraries are read ahead; {self.mappings} mappings")  # fmt: skip


def arrange(folder: Path, ready: Used, answered: Used) -> Arranged:
    """Rewrite a snapshot in the order of its use. Raises SnapshotError; then it stays as it was."""
    kernel, table = Manifest.read(folder).kernel, read_table(folder)
    order = Order(table.mappings, ready.image, answered.image)
    readings = [
        *_reading(MEMORY_IMG, 1, order.ends[READY]), *_of_files(table, ready, {}),
        *_reading(MEMORY_IMG, order.ends[READY], order.ends[ANSWERED]), *_of_files(table, answered, ready.libraries),
    ]  # fmt: skip
    new = replace(table, mappings=order.mappings, readings=readings)
    old = os.open(folder / IMAGE, os.O_RDONLY | os.O_CLOEXEC)
    try:
        with new_image(folder) as image:
            for begin, end in runs(order.pages, gap=0, ordered=False):
                _copy(old, image, begin * PAGE, end * PAGE)
            finish(folder, image, new, kernel)
    finally:
        os.close(old)
    return Arranged(
        ready=(order.ends[READY] - 1) * PAGE, answered=(order.ends[ANSWERED] - order.ends[READY]) * PAGE,
        libraries=sum(reading.bytes for reading in readings if reading.file != MEMORY_IMG), mappings=len(new.mappings),
    )  # fmt: skip


class Order:
    """The new order of the pages of memory.img."""

    def __init__(self, mappings: Sequence[Mapping], ready: Iterable[int], answered: Iterable[int]) -> None:
        """`mappings` are those of the table; `ready` and `answered` the numbers of used pages."""
        ours = [mapping for mapping in mappings if mapping.file == MEMORY_IMG]
        old = [page for mapping in ours for page in _pages(mapping)]
        copied = {page for mapping in ours if mapping.kind == COPIED for page in _pages(mapping)}
        part = [REST] * len(old)
        first = copied.union(ready)
        for pages, number in ((first.union(answered), ANSWERED), (first, READY)):
            for begin, end in runs([index for index, page in enumerate(old) if page in pages], GAP):
                part[begin:end] = [number] * (end - begin)
        by_part = sorted(range(len(old)), key=part.__getitem__)
        new = [0] * len(old)
        for place, index in enumerate(by_part, 1):  # after the first page
            new[index] = place
        self.pages = [old[index] for index in by_part]
        """Old numbers, in the new order."""
        self.ends = [1 + sum(number <= each for number in part) for each in (READY, ANSWERED)]
        """Numbers of the first pages after each part."""
        self.mappings = joined(_moved(mappings, part, new))
        """The table's mappings, with the new offsets."""


def _pages(mapping: Mapping) -> range:
    return range(mapping.offset // PAGE, (mapping.offset + mapping.bytes) // PAGE)


def _moved(mappings: Sequence[Mapping], part: Sequence[int], new: Sequence[int]) -> Iterator[Mapping]:
    index = 0
    for mapping in mappings:
        if mapping.file != MEMORY_IMG:
            yield mapping
            continue
        start, count = mapping.start, mapping.bytes // PAGE
        for _, group in groupby(range(index, index + count), key=part.__getitem__):
            first, *others = group
            size = (1 + len(others)) * PAGE
            yield replace(mapping, start=start, bytes=size, offset=new[first] * PAGE)
            start += size
        index += count


def _of_files(table: Table, used: Used, before: dict[str, frozenset[int]]) -> Iterator[Reading]:
    """What was used of the table's files and is not in `before`. The restorer compares first pages: they come first."""
    for index, file in enumerate(table.files):
        if not file.head:
            continue
        pages = used.libraries.get(file.path, frozenset())
        pages = pages - before.get(file.path, frozenset()) if before else pages | {0}
        for begin, end in runs(sorted(pages), GAP):
            yield from _reading(index, begin, end)


def _reading(file: int, begin: int, end: int) -> Iterator[Reading]:
    for offset in range(begin * PAGE, end * PAGE, LONGEST):
        yield Reading(file=file, offset=offset, bytes=min(LONGEST, end * PAGE - offset))


def runs(numbers: Sequence[int], gap: int, *, ordered: bool = True) -> Iterator[tuple[int, int]]:
    """First number, and the one after the last, of each run of consecutive numbers; of ordered ones with at most `gap`
    others between them."""
    begin = end = None
    for number in numbers:
        if begin is not None and end is not None:
            if number == end or (ordered and number - end <= gap):
                end = number + 1
                continue
            yield begin, end
        begin, end = number, number + 1
    if begin is not None and end is not None:
        yield begin, end


def _copy(old: int, new: int, begin: int, end: int) -> None:
    while begin < end:
        view = memoryview(os.pread(old, min(end - begin, 1 << 20), begin))
        begin += len(view)
        while view:
            view = view[os.write(new, view) :]
