"""What a start reads from its disks, written down for `prebake.startup.readahead`.

Files that Python opens are known from its audit events (PEP 578), in order. Libraries are mapped, and a start touches
a few of their pages: `/proc/self/pagemap` tells which, to what the kernel maps around a touched page. A library is
listed where the import that brought it began.
Folders in which something was looked for, found or not, come first: they are small, and a look-up waits for each.
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
"""Bytes between two ranges, up to which they are read as one: another request costs a disk more."""
LARGE = 16_000_000
"""Bytes of a file that a start opens and does not read whole: weights, of which the header is read."""
HEAD = 1 << 16
"""Bytes that are read of it."""
HEAVY = 3_000_000
"""Bytes of libraries that an import brings, from which on it waits until they are read."""
_NO_DISK = ("/proc/", "/sys/", "/dev/")
_LOADS = ("import", "ctypes.dlopen")
_LISTS = ("os.listdir", "os.scandir")


class Recorder:
    """Notes what this process reads, from `begin` on."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[int, int]] = {}
        """Path → its place in the order: the number of the event it belongs to, libraries before what was opened."""
        self._folders: dict[str, None] = {}
        """In the order of their first use; some are none, or relative."""
        self._events = self._last_load = 0
        self._modules: dict[int, str] = {}
        """Number of an event → the module that it imports."""
        self._listening = False
        self._ready: dict[str, set[int]] = {}

    def begin(self) -> None:
        """Listen from now on. The hook stays for the life of the process; after `text` it does nothing.

        What was read until now is listed first, as far as modules tell their files.
        """
        for module in list(sys.modules.values()):
            if cached := getattr(getattr(module, "__spec__", None), "cached", None):
                self._see(cached, (0, 0))
        self._see_libraries()
        self._listening = True
        sys.addaudithook(self._hear)

    def ready(self) -> None:
        """What was touched so far is what the start needs first."""
        self._ready = touched()

    def text(self, *, without: Iterable[Path] = ()) -> str:
        """The list of all that was read so far, and the end of listening. `without` are files that it leaves out."""
        self._see_libraries()
        self._listening = False
        left_out = {str(path.absolute()) for path in without}
        now = touched()
        ordered = [path for path in sorted(self._places, key=self._places.__getitem__) if _is_on_disk(path)]
        parts = self._parts(ordered, self._ready or now, now)
        folders = dict.fromkeys(str(Path(folder).absolute()) for folder in self._folders)
        parts[0][0][:0] = [(f"{folder}/", ()) for folder in folders if _is_on_disk(folder, Path.is_dir)]
        for path in ordered:  # the first answer's pages, when the start has all of its own
            more = now.get(path, set()) - self._ready.get(path, set()) if self._ready else set()
            if more and path not in left_out:
                parts[-1][0].append((path, ranges(more)))
        return text_of(parts)

    def _parts(self, ordered: list[str], pages: dict[str, set[int]], mapped: dict[str, set[int]]) -> list[Part]:
        """What is read of these files; a part ends where an import brought heavy libraries."""
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
            self._listening = False  # looking opens a file itself
            self._see_libraries()
            self._listening = True
            self._last_load = self._events
            if event == "import":
                self._modules[self._events] = str(arguments[0])
                self._see_package(str(arguments[0]))
            elif isinstance(arguments[0], str):  # one that cannot be loaded was read all the same
                self._see(arguments[0], (self._events, 1))

    def _see(self, path: str, place: tuple[int, int]) -> None:
        found = Path(path).absolute()
        self._places.setdefault(str(found), place)
        self._folders.setdefault(str(found.parent))
        if found.parent.name == "__pycache__":
            self._folders.setdefault(str(found.parent.parent))

    def _see_package(self, module: str) -> None:
        """An import looks into a folder of the module's name first, be it a package or not (`torch/_C/`)."""
        package, _, name = module.rpartition(".")
        for place in getattr(sys.modules.get(package), "__path__", ()) if package else sys.path:
            self._folders.setdefault(f"{place}/{name}")

    def _see_libraries(self) -> None:
        """What was mapped since the last look came with the last load."""
        for path in {path for path, *_ in _mappings()} - self._places.keys():
            self._see(path, (self._last_load, 0))


def _entry(path: str, pages: dict[str, set[int]], mapped: dict[str, set[int]]) -> Entry | None:
    """What is read of it first; None where that is nothing."""
    size = Path(path).stat().st_size
    if path not in mapped and size <= LARGE:
        return path, ()
    head = range(HEAD // PAGE if size > LARGE else 0)
    found = ranges({*pages.get(path, ()), *head})
    return (path, tuple((begin, min(length, size - begin)) for begin, length in found)) if found else None


def ranges(pages: Iterable[int]) -> Ranges:
    """First byte and length of each run of pages, where gaps of up to `GAP` bytes do not end one."""
    runs: list[list[int]] = []
    for page in sorted(pages):
        if runs and (page - runs[-1][1]) * PAGE <= GAP:
            runs[-1][1] = page + 1
        else:
            runs.append([page, page + 1])
    return tuple((begin * PAGE, (end - begin) * PAGE) for begin, end in runs)


def touched() -> dict[str, set[int]]:
    """File → numbers of its pages that this process has in memory, through a mapping of its own."""
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
