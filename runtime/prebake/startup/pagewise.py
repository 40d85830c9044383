"""Records which pages of a library a start touches, to 16 kB; the kernel alone gives 64 kB or more around each.

When a page is touched, the kernel also maps its neighbours that are in the page cache (fault-around), but only within
the same mapping. So this module splits libraries into mappings of 16 kB, by alternating `madvise` values. This must
happen after a library is mapped and before it is relocated, inside `dlopen`. At that point glibc calls an empty
function, meant for debuggers' breakpoints (`struct r_debug` in `link.h`). This module overwrites that function, in this
process's memory, with a jump to its own code. Only a start that is being recorded does this.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import sys
from collections.abc import Iterator
from contextlib import suppress
from typing import ClassVar, Literal

PIECE = 1 << 14
"""Bytes of a mapping."""
LARGE = 1 << 20
"""Minimum size of a library to split, in bytes."""
MAPPINGS = 65_530
"""Linux's default limit of mappings per process (`vm.max_map_count`). This module uses up to three quarters of it."""

_CONSISTENT = 0
"""All requested libraries are mapped (`RT_CONSISTENT`)."""
_PT_LOAD = 1
_HEADER = ((32, 8), (54, 2), (56, 2))
"""Offset and size in bytes of e_phoff, e_phentsize and e_phnum."""
_READ, _WRITE, _EXECUTE = mmap.PROT_READ, mmap.PROT_WRITE, mmap.PROT_EXEC
_BODIES = (b"\xc3", b"\xf3\x0f\x1e\xfa\xc3")
"""The empty function: ret, or endbr64 and ret. The padding up to 16 bytes, where the next function begins, is never
executed."""


class _LinkMap(ctypes.Structure):
    """A library in the dynamic linker's list."""

    _fields_: ClassVar = [(name, ctypes.c_void_p) for name in ("address", "name", "dynamic", "next")]


class _Debug(ctypes.Structure):
    """The dynamic linker's interface for debuggers."""

    _fields_: ClassVar = [
        ("version", ctypes.c_int), ("first", ctypes.c_void_p), ("called", ctypes.c_void_p), ("state", ctypes.c_int)
    ]  # fmt: skip


class _Segment(ctypes.Structure):
    """`Elf64_Phdr`."""

    _fields_: ClassVar = [("kind", ctypes.c_uint32), ("flags", ctypes.c_uint32)] + [
        (name, ctypes.c_uint64) for name in ("offset", "address", "physical", "in_file", "in_memory", "alignment")
    ]


class Pagewise:
    """Splits the libraries that any thread loads while this context manager is active.

    A thread that loads a library without the GIL waits for the GIL inside `dlopen`, so no other thread may load
    libraries meanwhile. The loader's lock on imports ensures this.
    """

    def __init__(self) -> None:
        self.works = False
        """Whether the function is overwritten; requires x86-64, glibc, and permission to write code."""
        self.loads = 0
        """How often libraries were loaded, if it works."""
        self._left = _most_mappings() * 3 // 4
        self._known: set[int] = set()
        self._called = ctypes.CFUNCTYPE(None)(self._loaded)  # kept: another thread may run it after `__exit__`
        self._libc = ctypes.CDLL(None) if sys.platform == "linux" else None
        self._debug = _debug(self._libc)
        self._before = b""

    def __enter__(self) -> Pagewise:
        if self._debug is not None:
            self._known = set(self._libraries())
            target = ctypes.cast(self._called, ctypes.c_void_p).value or 0
            jump = b"\x48\xb8" + target.to_bytes(8, "little") + b"\xff\xe0"  # mov rax, target; jmp rax
            self._before = ctypes.string_at(self._debug.called, len(jump))
            self.works = self._overwrite(jump)
        return self

    def __exit__(self, *error: object) -> Literal[False]:
        if self.works:
            self._overwrite(self._before)
            self.works = False
        return False

    def _loaded(self) -> None:
        # runs inside dlopen: must not import or load a library in any other way
        if self._debug is None or self._debug.state != _CONSISTENT:
            return
        self.loads += 1
        for address in set(self._libraries()) - self._known:
            self._known.add(address)
            self._cut(address)

    def _libraries(self) -> Iterator[int]:
        """The address at which each library is mapped."""
        entry = self._debug.first if self._debug is not None else None
        while entry:
            library = _LinkMap.from_address(entry)
            yield library.address or 0
            entry = library.next

    def _cut(self, base: int) -> None:
        segments = _segments(base)
        pieces = sum(segment.in_file // PIECE for segment in segments)
        if self._libc is None or pieces * PIECE < LARGE or pieces > self._left:
            return
        self._left -= pieces
        for segment in segments:
            begin, end = base + segment.address, base + segment.address + segment.in_file
            for at in range(begin & -PIECE, end & -PIECE, 2 * PIECE):
                start = max(at, begin & -mmap.PAGESIZE)
                self._libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(at + PIECE - start), mmap.MADV_RANDOM)

    def _overwrite(self, code: bytes) -> bool:
        if self._libc is None or self._debug is None:
            return False
        place = self._debug.called
        page = (ctypes.c_void_p(place & -mmap.PAGESIZE), ctypes.c_size_t(mmap.PAGESIZE))
        if self._libc.mprotect(*page, _READ | _WRITE | _EXECUTE):
            return False
        ctypes.memmove(place, code, len(code))
        return not self._libc.mprotect(*page, _READ | _EXECUTE)


def _most_mappings() -> int:
    try:
        with open("/proc/sys/vm/max_map_count", encoding="ascii") as limit:  # noqa: PTH123
            return int(limit.read())
    except (OSError, ValueError):
        return MAPPINGS


def _debug(libc: ctypes.CDLL | None) -> _Debug | None:
    """The dynamic linker's `_r_debug`, or None if the function that it calls is not the expected one."""
    if libc is None or platform.machine() != "x86_64":
        return None
    try:
        debug = _Debug.in_dll(libc, "_r_debug")
        place = ctypes.cast(libc._dl_debug_state, ctypes.c_void_p).value
    except (ValueError, AttributeError):
        return None
    if not place or place != debug.called or place % 16:
        return None
    return debug if ctypes.string_at(place, 16).startswith(_BODIES) else None


def _segments(base: int) -> list[_Segment]:
    """The loaded segments of a library, from its header at address `base` (man 5 elf, 64 bits)."""
    with suppress(OSError), open("/proc/self/mem", "rb", buffering=0) as memory:  # noqa: PTH123
        # read through the file: an unmapped address then raises an error instead of killing the process
        header = os.pread(memory.fileno(), 64, base)
        if not header.startswith(b"\x7fELF\x02"):
            return []
        first, size, count = (int.from_bytes(header[at : at + length], "little") for at, length in _HEADER)
        table = os.pread(memory.fileno(), size * count, base + first)
        segments = [_Segment.from_buffer_copy(table, number * size) for number in range(count)]
        return [segment for segment in segments if segment.kind == _PT_LOAD and segment.in_file]
    return []
