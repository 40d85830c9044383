"""Records what a start reads from disk, for `prebake.startup.readahead`.

Python's audit events (PEP 578) give the files that it opens, in order. Libraries are mapped, and a start touches only
some of their pages; `/proc/self/pagemap` gives these, with the neighbours that the kernel maps (fault-around). A
library is listed at the start of the import that loaded it. Folders that were searched come first: they are small, and
each lookup waits for one.
"""

from __future__ import annotations

import os
import sys
from array import array
from collections.abc import Callable, Iterable, Iterator
from itertools import groupby
from pathlib import Path

from prebake.startup.readahead import Entry, Part, Ranges, text_of

PAGE = os.sysconf("SC_PAGE_SIZE")
TOUCHED = 3 << 62
"""Bits of a page's entry in pagemap: present, or swapped (Documentation/admin-guide/mm/pagemap.rst of Linux)."""
GAP = 1 << 15
"""Ranges with at most this many bytes between them are merged: a second request costs the disk more."""
LARGE = 16_000_000
"""Larger files (bytes) are not read whole: they are weights, of which a start reads the header."""
HEAD = 1 << 16
"""Bytes to read of a large file."""
HEAVY = 3_000_000
"""If an import loads at least this many bytes of libraries, it waits until they are read."""
_NO_DISK = ("/proc/", "/sys/", "/dev/")
_LOADS = ("import", "ctypes.dlopen")
_LISTS = ("os.listdir", "os.scandir")


class Recorder:
    """Records what this process reads after `begin`."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        """Path → its place in the order: the number of its event, and 0 for libraries or 1 for opened files."""
        self._folders: dict[str, None] = {}
        """In the order of their first use; some do not exist or are relative."""
        self._events = self._last_load = 0
        self._modules: dict[int, str] = {}
        """Number of an event → the imported module."""
        self._listening = False
        self._ready: dict[str, set[int]] = {}

    def begin(self) -> None:
        """Start recording. The audit hook stays for the life of the process; after `text` it does nothing.

        The files of modules that are already imported are listed first.
        """
        for module in list(sys.modules.values()):
            if cached := getattr(getattr(module, "__spec__", None), "cached", None):
                self._see(cached, (0, 0))
        self._see_libraries()
        self._listening = True
        sys.addaudithook(self._hear)

    def ready(self) -> None:
        """Mark readiness: the pages touched so far are listed first."""
        self._ready = touched()

    def text(self, *, without: Iterable[Path] = ()) -> str:
        """Stop recording and return the list of everything read so far, except the files in `without`."""
        self._see_libraries()
        self._listening = False
        left_out = {str(path.absolute()) for path in without}
        now = touched()
        ordered = [path for path in sorted(self._places, key=self._places.__getitem__) if _is_on_disk(path)]
        parts = self._parts(ordered, self._ready or now, now)
        folders = dict.fromkeys(str(Path(folder).absolute()) for folder in self._folders)
        parts[0][0][:0] = [(f"{folder}/", ()) for folder in folders if _is_on_disk(folder, Path.is_dir)]
        for path in ordered:  # the pages of the first answer come after all pages of the start
            more = now.get(path, set()) - self._ready.get(path, set()) if self._ready else set()
            if more and path not in left_out:
                parts[-1][0].append((path, ranges(more)))
        return text_of(parts)

    def _parts(self, ordered: list[str], pages: dict[str, set[int]], mapped: dict[str, set[int]]) -> list[Part]:
        """The entries of these files; a part ends at each import that loaded heavy libraries."""
        parts: list[Part] = []
        entries: list[Entry] = []
        for place, paths in groupby(ordered, self._places.__getitem__):
            group = [entry for path in paths if (entry := _entry(path, pages, mapped))]
            entries += group
            module = self._modules.get(place[0]) if place[1] == 0 else None
            if module and sum(length for _, parts_of in group for _, length in parts_of) >= HEAVY:
                parts.append((entries, module))
                entries = []
        return [*parts, (entries, None)]

    def _hear(self, event: str, arguments: tuple[object, ...]) -> None:
        if not self._listening:
            return
        self._events += 1
        if event == "open" and isinstance(arguments[0], (str, bytes)):
            self._see(os.fsdecode(arguments[0]), (self._events, 1))
        elif event in _LISTS and isinstance(arguments[0], str):
            self._folders.setdefault(arguments[0])
        elif event in _LOADS:
            self._listening = False  # listing the libraries opens a file too
            self._see_libraries()
            self._listening = True
            self._last_load = self._events
            if event == "import":
                self._modules[self._events] = str(arguments[0])
                self._see_package(str(arguments[0]))
            elif isinstance(arguments[0], str):  # a library that failed to load was read too
                self._see(arguments[0], (self._events, 1))

    def _see(self, path: str, place: tuple[int, int]) -> None:
        found = Path(path).absolute()
        self._places.setdefault(str(found), place)
        self._folders.setdefault(str(found.parent))
        if found.parent.name == "__pycache__":
            self._folders.setdefault(str(found.parent.parent))

    def _see_package(self, module: str) -> None:
        """Add the folders that an import searches first, whether the module is a package or not (`torch/_C/`)."""
        package, _, name = module.rpartition(".")
        for place in getattr(sys.modules.get(package), "__path__", ()) if package else sys.path:
            self._folders.setdefault(f"{place}/{name}")

    def _see_libraries(self) -> None:
        """Assign the libraries mapped since the last call to the last load."""
        for path in {path for path, *_ in _mappings()} - self._places.keys():
            self._see(path, (self._last_load, 0))


def _entry(path: str, pages: dict[str, set[int]], mapped: dict[str, set[int]]) -> Entry | None:
    """The ranges of a file that are read first; None if there are none."""
    size = Path(path).stat().st_size
    if path not in mapped and size <= LARGE:
        return path, ()
    head = range(HEAD // PAGE if size > LARGE else 0)
    found = ranges({*pages.get(path, ()), *head})
    return (path, tuple((begin, min(length, size - begin)) for begin, length in found)) if found else None


def ranges(pages: Iterable[int]) -> Ranges:
    """First byte and length of each run of pages; runs with at most `GAP` bytes between them are merged."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and (page - runs[-1][1]) * PAGE <= GAP:
            runs[-1][1] = page + 1
        else:
            runs.append([page, page + 1])
    return tuple((begin * PAGE, (end - begin) * PAGE) for begin, end in runs)


def touched() -> dict[str, set[int]]:
    """File → numbers of its pages that are in memory through this process's mappings."""
    found: dict[str, set[int]] = {}
    with open("/proc/self/pagemap", "rb", buffering=0) as pagemap:  # noqa: PTH123
        for path, begin, end, offset in _mappings():
            entries = array("Q")
            entries.frombytes(os.pread(pagemap.fileno(), (end - begin) // PAGE * 8, begin // PAGE * 8))
            first = offset // PAGE
            pages = {first + number for number, entry in enumerate(entries) if entry & TOUCHED}
            found.setdefault(path, set()).update(pages)
    return found


def _mappings() -> Iterator[tuple[str, int, int, int]]:
    """Path, first and last address, and offset in the file of each mapping of a file (man 5 proc_pid_maps)."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines():
        addresses, _, offset, _, inode, *path = line.split(None, 5)
        if path and inode != "0" and path[0].startswith("/"):
            begin, _, end = addresses.partition("-")
            yield path[0], int(begin, 16), int(end, 16), int(offset, 16)


def _is_on_disk(path: str, kind: Callable[[Path], bool] = Path.is_file) -> bool:
    if f"{path}/".startswith(_NO_DISK) or "\t" in path or not path.isprintable():
        return False
    return kind(Path(path))
