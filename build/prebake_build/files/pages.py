"""Pages of mapped files: read ahead, given back, compared, and found again in this process's mappings.

Linux only, as the worker's isolation is. Where the kernel lacks something, the functions do less: nothing depends on it
but time and memory. madvise(2); proc_pid_smaps(5).
"""

from __future__ import annotations

import ctypes
import os
import re
from bisect import bisect_right
from dataclasses import dataclass
from pathlib import Path

import torch

_LIBC = ctypes.CDLL(None, use_errno=True)
_LIBC.memcmp.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_LIBC.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_PAGE = os.sysconf("SC_PAGESIZE")

WILLNEED, DONTNEED, PAGEOUT = 3, 4, 21
"""Read these pages soon; drop them from this process (changes of a private mapping are lost!); reclaim them now
(changes are kept)."""


def advise(address: int, size: int, advice: int) -> None:
    """Advise the kernel about the whole pages of a range; WILLNEED includes the pages at its ends. Never fails."""
    begin, end = address // _PAGE * _PAGE, -(-(address + size) // _PAGE) * _PAGE
    if advice != WILLNEED:
        begin, end = -(-address // _PAGE) * _PAGE, (address + size) // _PAGE * _PAGE
    if begin < end:
        _LIBC.madvise(begin, end - begin, advice)


def are_equal(one: int, other: int, size: int) -> bool:
    """Whether `size` bytes at two addresses are equal. Holds no lock of Python's meanwhile."""
    return bool(_LIBC.memcmp(one, other, size) == 0)


@dataclass(frozen=True, slots=True)
class Place:
    """A range of a file."""

    file: tuple[str, str]
    """Device and inode, as /proc/self/smaps spells them."""
    offset: int
    size: int


@dataclass(frozen=True, slots=True)
class _Mapping:
    begin: int
    end: int
    offset: int
    file: tuple[str, str]
    changed: bool
    """Whether it has pages that are no longer the file's."""


_HEAD = re.compile(r"([0-9a-f]+)-([0-9a-f]+) \S+ ([0-9a-f]+) (\S+) (\d+)")
_COPIED = re.compile(r"(?:Anonymous|Swap): +([1-9]\d*) kB")


class Mappings:
    """What this process has mapped at one moment."""

    def __init__(self, smaps: Path = Path("/proc/self/smaps")) -> None:
        """Without the file, as in some sandboxes, nothing is found."""
        self._found: list[_Mapping] = []
        try:
            text = smaps.read_text(encoding="utf-8", errors="surrogateescape")
        except OSError:
            return
        head: re.Match[str] | None = None
        changed = False
        for line in (*text.splitlines(), "0-0 - 0 - 0"):
            if found := _HEAD.match(line):
                if head is not None:
                    begin, end, offset = (int(head[number], 16) for number in (1, 2, 3))
                    self._found.append(_Mapping(begin, end, offset, (head[4], head[5]), changed))
                head, changed = found, False
            else:
                changed = changed or bool(_COPIED.match(line))
        self._found.sort(key=lambda mapping: mapping.begin)

    def place(self, address: int, size: int) -> Place | None:
        """The range of a file that these bytes are, or None: they belong to no file, or were changed in memory."""
        number = bisect_right(self._found, address, key=lambda mapping: mapping.begin) - 1
        if number < 0:
            return None
        mapping = self._found[number]
        if address + size > mapping.end or mapping.changed or mapping.file[1] == "0":
            return None
        return Place(mapping.file, mapping.offset + address - mapping.begin, size)


def elements(tensor: torch.Tensor) -> tuple[int, int] | None:
    """Address and bytes of the tensor's elements if they lie in memory as a file holds them, else None."""
    plain = tensor.device.type == "cpu" and tensor.layout is torch.strided and not tensor.is_quantized
    if not plain or not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    return tensor.data_ptr(), tensor.numel() * tensor.element_size()
