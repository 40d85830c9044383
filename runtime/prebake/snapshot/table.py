"""The table of a snapshot: what is mapped where. `native/table.h` is the same in C; the restorer reads nothing else.

Little endian: a header, then sections of fixed-size records, then the text that they point into. `docs/snapshot.md`
describes each field. The restorer checks every offset and count before it uses it (`native/table.c`).
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

MAGIC = b"PBSNAP\r\n"
VERSION = 2
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
_READING = struct.Struct("<QQII")
_TEXT = struct.Struct("<I")
_HEAD = struct.Struct("<8sIIQQ")
_REST = struct.Struct(f"<16sQQQQQQQ11Q{CPU_WORDS}I14I")


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
class Reading:
    """A range of a file that the restorer reads ahead."""

    file: int
    """Index into the files, or MEMORY_IMG."""
    offset: int
    bytes: int


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
    readings: Sequence[Reading] = field(default=())
    """What a start touches first, in that order."""

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
            [_TEXT.pack(text.add(each)) for each in self.bound],
            [_TEXT.pack(text.add(each)) for each in self.names],
            [_READING.pack(r.offset, r.bytes, r.file, 0) for r in self.readings],
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

    @classmethod
    def from_bytes(cls, content: bytes) -> Table:
        """Read a file's content. Raises ValueError that says what is wrong with it, in the words of `native/table.c`.

        Checks that the records can be read. What they say is checked by `check_table` there, before a restore.
        """
        if content[:8] != MAGIC:
            raise ValueError("it is not a snapshot's table")
        if len(content) < _HEAD.size:
            raise ValueError("it is truncated")
        _, version, header_bytes, size, total = _HEAD.unpack_from(content)
        if version != VERSION:
            raise ValueError("its format has another version")
        if size != len(content) or header_bytes != _HEAD.size + _REST.size or size < header_bytes:
            raise ValueError("it is truncated")
        if total != checksum(content[_HEAD.size :]):
            raise ValueError("its checksum differs: it is damaged")
        return cls._from_sections(content, _REST.unpack_from(content, _HEAD.size))

    @classmethod
    def _from_sections(cls, content: bytes, rest: Sequence[Any]) -> Table:
        places = [*zip(rest[-14::2], rest[-13::2], strict=True)]
        text_at, text_bytes = places.pop()
        text = content[text_at : text_at + text_bytes]

        def string(offset: int) -> str:
            end = text.find(b"\0", offset)
            if end < 0:
                raise ValueError("its text does not end")
            return text[offset:end].decode("utf-8", "surrogateescape")

        def records(form: struct.Struct, place: tuple[int, int]) -> Iterator[tuple[Any, ...]]:
            offset, count = place
            if offset + count * form.size > len(content):
                raise ValueError("a section lies outside it")
            return form.iter_unpack(content[offset : offset + count * form.size])

        mappings, files, entries, bound, names, readings = places
        vdso = Vdso(data=rest[4], start=rest[5], end=rest[6], checksum=rest[7],
                    entries=tuple((offset, call) for offset, call in records(_ENTRY, entries)))  # fmt: skip
        return cls(
            id=rest[0], image_bytes=rest[1], resume=rest[2], frame=rest[3], vdso=vdso,
            memory=rest[8:19], cpu=rest[19 : 19 + CPU_WORDS],
            mappings=[Mapping(start=start, bytes=size, protection=protection, kind=kind, file=file, offset=offset)
                      for start, size, offset, file, protection, kind in records(_MAPPING, mappings)],
            files=[File(path=string(path), bytes=size, head=head, mtime_ns=seconds * 10**9 + nanoseconds)
                   for size, head, seconds, nanoseconds, path in records(_FILE, files)],
            bound=[string(offset) for offset, in records(_TEXT, bound)],
            names=[string(offset) for offset, in records(_TEXT, names)],
            readings=[Reading(file=file, offset=offset, bytes=size)
                      for offset, size, file, _ in records(_READING, readings)],
        )  # fmt: skip


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
