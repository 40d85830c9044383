"""Cuts from a shared library what no process maps: symbol tables and debug sections, as `strip` does.

The file stays byte for byte what it was up to the end of its last segment, but for the three fields of the ELF header
that point to the section table. So the loaded library is the same by construction; GNU strip moves segments, which
breaks libraries that patchelf has changed (auditwheel changes most).

Follows the System V ABI's object file format (gabi, chapters 4 and 5); 64-bit, little-endian.
"""

from __future__ import annotations

import os
import shutil
import struct
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple

_HEADER = struct.Struct("<16sHHIQQQIHHHHHH")
_SEGMENT = struct.Struct("<IIQQQQQQ")
_SECTION = struct.Struct("<IIQQQQIIQQ")
_START = b"\x7fELF\x02\x01\x01"
_SHARED = 3
_NOBITS = 8
_ALLOCATED = 2
_LEAST = 4096
"""Bytes below which a cut saves no block."""
_DROPPED = (".symtab", ".strtab", ".shstrtab", ".debug", ".zdebug", ".comment", ".gnu_debug", ".gdb_index", ".stab",
            ".GCC.command.line", ".gnu.build.attributes", ".gnu.lto_", ".llvm_addrsig", ".note.stapsdt",
            ".note.gnu.gold-version", ".annobin", ".SUNW_ctf")  # fmt: skip
"""Beginnings of names of sections that only debuggers and linkers read. A file with another section outside of its
segments is left alone: programs keep payloads there."""


class Section(NamedTuple):
    name: int
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    info: int
    alignment: int
    entry_size: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Cut:
    """What to do with one library."""

    end: int
    """Bytes that stay as they are."""
    tail: bytes
    """The names of the sections that stay, and their table."""
    table: int
    """Offset of the table, in the new file."""
    sections: int
    """Entries of the table; the last one has the names."""
    saved: int
    """Bytes that the file gets smaller."""


def find_cut(path: Path) -> Cut | None:
    """How the library can be cut; None if it is no such library, or there is nothing to gain."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEADER.size)
        if len(head) < _HEADER.size or not head.startswith(_START):
            return None
        fields = _HEADER.unpack(head)
        kind, segments_at, sections_at = fields[1], fields[5], fields[6]
        segment_size, segment_count, section_size, section_count, names_at = fields[9:14]
        if (kind, segment_size, section_size) != (_SHARED, _SEGMENT.size, _SECTION.size) or names_at >= section_count:
            return None
        segments = [_SEGMENT.unpack(data) for data in _entries(file, segments_at, segment_count, _SEGMENT.size)]
        sections = [Section(*_SECTION.unpack(data))
                    for data in _entries(file, sections_at, section_count, _SECTION.size)]  # fmt: skip
        if len(segments) != segment_count or len(sections) != section_count or not segments:
            return None
        names = _read(file, sections[names_at].offset, sections[names_at].size)
    end = max(segments_at + segment_count * _SEGMENT.size, *(segment[2] + segment[5] for segment in segments))
    if end > min(size, sections_at) or not _all_known(sections, names, end, size):
        return None
    return _cut(sections, names, end, size)


def _entries(file: BinaryIO, offset: int, count: int, size: int) -> list[bytes]:
    data = _read(file, offset, count * size)
    return [data[at : at + size] for at in range(0, len(data) - size + 1, size)]


def _read(file: BinaryIO, offset: int, count: int) -> bytes:
    """Empty if the file has no such part."""
    if offset + count > file.seek(0, os.SEEK_END):
        return b""
    file.seek(offset)
    return file.read(count)


def _name(section: Section, names: bytes) -> str:
    return names[section.name :].partition(b"\0")[0].decode("latin-1")


def _all_known(sections: Sequence[Section], names: bytes, end: int, size: int) -> bool:
    """Whether everything behind `end` is a section that may go, or the table, or padding between these."""
    behind = size - end - len(sections) * _SECTION.size
    for section in sections[1:]:
        if section.type == _NOBITS or section.offset + section.size <= end:
            continue
        if section.flags & _ALLOCATED or section.offset < end or not _name(section, names).startswith(_DROPPED):
            return False
        behind -= section.size
    return behind < _LEAST


def _cut(sections: Sequence[Section], names: bytes, end: int, size: int) -> Cut | None:
    """A section's number is part of the dynamic symbols: those that stay keep it, those between become empty."""
    last = max(number for number, section in enumerate(sections) if number == 0 or section.flags & _ALLOCATED)
    strings, table = bytearray(b"\0"), []
    for section in sections[: last + 1]:
        if section.flags & _ALLOCATED:
            link = section.link if section.link <= last else 0
            table.append(_SECTION.pack(*section._replace(name=len(strings), link=link)))
            strings += _name(section, names).encode("latin-1") + b"\0"
        else:
            table.append(bytes(_SECTION.size))
    own_name = len(strings)
    strings += b".shstrtab\0"
    table.append(_SECTION.pack(own_name, 3, 0, 0, end, len(strings), 0, 0, 1, 0))
    padding = -(end + len(strings)) % 8
    tail = bytes(strings) + bytes(padding) + b"".join(table)
    saved = size - end - len(tail)
    if saved < _LEAST:
        return None
    return Cut(end=end, tail=tail, table=end + len(strings) + padding, sections=len(table), saved=saved)


def apply_cut(path: Path, cut: Cut) -> None:
    """Replace the library by the shorter one, in one step; processes and links that have the old file keep it."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as new, path.open("rb") as old:
            head = list(_HEADER.unpack(old.read(_HEADER.size)))
            head[6], head[12], head[13] = cut.table, cut.sections, cut.sections - 1
            new.write(_HEADER.pack(*head))
            _copy(old, new, cut.end - _HEADER.size)
            new.write(cut.tail)
        shutil.copystat(path, name)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def _copy(old: BinaryIO, new: BinaryIO, count: int) -> None:
    while count:
        chunk = old.read(min(count, 1 << 20))
        if not chunk:
            raise EOFError("the file became shorter while it was read")
        new.write(chunk)
        count -= len(chunk)
