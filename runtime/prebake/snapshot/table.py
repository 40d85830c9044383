"""The table of a snapshot: what is mapped where. `native/table.h` is the same in C; the restorer reads nothing else.

Little endian: a header, then sections of fixed-size records, then the text that they point into. `docs/snapshot.md`
describes each field. The restorer checks every offset and count before it uses it (`native/table.c`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

MAGIC = b"PBSNAP\r\n"
VERSION = 1
LIMIT = 0x100000
"""Maximum bytes of a table."""
LOW_END = 0x400000
"""Addresses below belong to the restorer."""
PAGE = 4096
CPU_WORDS = 12

NO_FILE = 0xFFFFFFFF
MEMORY_IMG = 0xFFFFFFFE
MAPPED, COPIED, SHARED = range(3)
"""How a mapping gets its contents: pages of a file, a copy of pages of memory.img, or a file's shared pages."""

_MAPPING = struct.Struct("<QQQIHH")
_FILE = struct.Struct("<QQqII")
_ENTRY = struct.Struct("<II")
_HEAD = struct.Struct("<8sIIQQ")
_REST = struct.Struct(f"<16sQQQQQQQ11Q{CPU_WORDS}I12I")


@dataclass(frozen=True, kw_only=True, slots=True)
class Mapping:
    """Consecutive pages with one source."""

    start: int
    bytes: int
    protection: int
    """1 read, 2 write, 4 execute."""
    kind: int = MAPPED
    file: int = NO_FILE
    """Index into the files, NO_FILE, or MEMORY_IMG."""
    offset: int = 0

    @property
    def end(self) -> int:
        return self.start + self.bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class File:
    """A file that the state depends on, as it was at the dump."""

    path: str
    bytes: int
    head: int
    """Checksum of its first page; 0 if only size and time are compared."""
    mtime_ns: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Vdso:
    """The kernel's code in every process, and the data before it."""

    data: int
    start: int
    end: int
    checksum: int
    entries: tuple[tuple[int, int], ...]
    """Offset of a function, and the system call that does the same."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """What the restorer needs to know."""

    id: bytes
    image_bytes: int
    resume: int
    frame: int
    vdso: Vdso
    memory: Sequence[int]
    """The first eleven fields of the kernel's `struct prctl_mm_map`."""
    cpu: Sequence[int]
    mappings: Sequence[Mapping]
    files: Sequence[File]
    bound: Sequence[str] = field(default=())
    """`NAME=VALUE` of the variables that the state depends on."""
    names: Sequence[str] = field(default=())
    """`NAME` or `PREFIX*`: other variables of these names refuse the snapshot."""

    def to_bytes(self) -> bytes:
        """The file's content."""
        text = _Text()
        vdso = self.vdso
        sections = [
            [_MAPPING.pack(m.start, m.bytes, m.offset, m.file, m.protection, m.kind) for m in self.mappings],
            [
                _FILE.pack(f.bytes, f.head, f.mtime_ns // 10**9, f.mtime_ns % 10**9, text.add(f.path))
                for f in self.files
            ],
            [_ENTRY.pack(offset, call) for offset, call in vdso.entries],
            [struct.pack("<I", text.add(each)) for each in self.bound],
            [struct.pack("<I", text.add(each)) for each in self.names],
        ]
        header_bytes = _HEAD.size + _REST.size
        body, places = bytearray(), []
        for records, count in [*((each, len(each)) for each in sections), ([text.bytes], len(text.bytes))]:
            places += [header_bytes + len(body), count]
            body += b"".join(records)
            body += bytes(-len(body) % 8)
        rest = _REST.pack(
            self.id, self.image_bytes, self.resume, self.frame,
            vdso.data, vdso.start, vdso.end, vdso.checksum, *self.memory, *self.cpu, *places,
        ) + bytes(body)  # fmt: skip
        return _HEAD.pack(MAGIC, VERSION, header_bytes, _HEAD.size + len(rest), checksum(rest)) + rest


class _Text:
    def __init__(self) -> None:
        self.bytes = b""
        self._places: dict[str, int] = {}

    def add(self, text: str) -> int:
        if text not in self._places:
            self._places[text] = len(self.bytes)
            self.bytes += text.encode("utf-8", "surrogateescape") + b"\0"
        return self._places[text]


def checksum(data: bytes) -> int:
    """The checksum of `native/system.h`: against accidents, not against attackers."""
    mask = (1 << 64) - 1
    total = 0xCBF29CE484222325 ^ len(data)
    padded = data + bytes(-len(data) % 8)
    for (word,) in struct.iter_unpack("<Q", padded):
        total = (total ^ word) * 0x100000001B3 & mask
        total ^= total >> 29
    return total


def joined(mappings: Iterable[Mapping]) -> list[Mapping]:
    """The mappings, with neighbours made one where they continue each other."""
    result: list[Mapping] = []
    for each in mappings:
        last = result[-1] if result else None
        if (
            last is not None
            and last.end == each.start
            and (last.protection, last.kind, last.file) == (each.protection, each.kind, each.file)
            and (each.file == NO_FILE or last.offset + last.bytes == each.offset)
        ):
            result[-1] = Mapping(start=last.start, bytes=last.bytes + each.bytes, protection=last.protection,
                                 kind=last.kind, file=last.file, offset=last.offset)  # fmt: skip
        else:
            result.append(each)
    return result
