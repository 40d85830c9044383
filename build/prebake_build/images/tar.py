"""Entries of a tar file, byte for byte as BuildKit writes them, so that equal files give equal layer digests.

BuildKit writes layers with Go's archive/tar: ustar headers with octal zeros in the device fields, long names split into
prefix and name, and an extended header (PAX) only for a name or size that ustar can't hold. Python's tarfile leaves the
device fields empty, and versions of it differ, so the headers are written here.

Format: POSIX.1-2017, pax, "ustar Interchange Format".
"""

from __future__ import annotations

import struct

BLOCK = 512
END = bytes(2 * BLOCK)
"""Two empty blocks end a tar file."""

_USTAR = struct.Struct("100s8s8s8s12s12s8s1s100s6s2s32s32s8s8s155s12x")
_LARGEST = 8**11 - 1
"""Bytes of the largest file whose size fits into a ustar header."""
_SHORTEST_COMMENT = len("12 comment=\n")
_FILE, _LINK, _FOLDER, _EXTENDED = b"0", b"2", b"5", b"x"


def folder_entry(name: str) -> bytes:
    """The entry of a folder: mode 0755, owner 0, mtime 0. `name` is a relative POSIX path."""
    return _extended(name + "/", 0) + _header(name + "/", 0o755, 0, _FOLDER)


def link_entry(name: str, target: str) -> bytes:
    """The entry of a symlink: owner 0, mtime 0."""
    records = _records(name, 0, target)
    header = _header(name, 0o777, 0, _LINK, target=target)
    return (_extended_header(name, records) if records else b"") + header


def file_entry(name: str, size: int, *, position: int = 0, align: int = BLOCK) -> bytes:
    """What stands before the data of a file of `size` bytes: mode 0644, owner 0, mtime 0.

    `position` is the entry's place in the tar file. With a larger `align`, a PAX comment is added where it is needed
    for the data to start at a multiple of that many bytes; that gives another layer digest than BuildKit's.
    """
    extended = _extended(name, size)
    if (position + len(extended) + BLOCK) % align:
        records = _records(name, size)
        blocks = len(records) + _SHORTEST_COMMENT + -(len(records) + _SHORTEST_COMMENT) % BLOCK
        gap = -(position + BLOCK + blocks + BLOCK) % align
        extended = _extended_header(name, records + _comment(blocks + gap - len(records)))
    return extended + _header(name, 0o644, size, _FILE)


def padding(size: int) -> bytes:
    """What follows the data of a file of `size` bytes."""
    return bytes(-size % BLOCK)


def _records(name: str, size: int, target: str = "") -> bytes:
    """The PAX records that this entry needs; none where a ustar header holds everything."""
    if size <= _LARGEST and name.isascii() and (len(name) <= 100 or _split(name)) and _is_short(target):
        return b""
    link = b"" if _is_short(target) else _record("linkpath", target)
    path = b"" if _is_short(name) else _record("path", name)
    return link + path + (_record("size", str(size)) if size > _LARGEST else b"")


def _is_short(name: str) -> bool:
    return len(name) <= 100 and name.isascii()


def _split(name: str) -> tuple[str, str] | None:
    """A long name as prefix and name, split at the last slash that the prefix can reach; None if that is too little."""
    reach = 156 if len(name) > 156 else len(name) - name.endswith("/")
    place = name.rfind("/", 0, reach)
    prefix, rest = name[:place], name[place + 1 :]
    return (prefix, rest) if place > 0 and 0 < len(rest) <= 100 else None


def _extended(name: str, size: int) -> bytes:
    records = _records(name, size)
    return _extended_header(name, records) if records else b""


def _extended_header(name: str, records: bytes) -> bytes:
    folder, _, file = name.rstrip("/").rpartition("/")
    # Go splits "a/b/" into folder "a/b" and an empty file name
    parts = [name.rstrip("/"), "PaxHeaders.0"] if name.endswith("/") else [folder, "PaxHeaders.0", file]
    special = "/".join(part for part in parts if part)
    return _header(special, 0, len(records), _EXTENDED, devices=b"") + records + padding(len(records))


def _comment(length: int) -> bytes:
    """A record without meaning that takes `length` bytes."""
    return f"{length} comment=".encode().ljust(length - 1) + b"\n"


def _record(key: str, value: str) -> bytes:
    """`LENGTH KEY=VALUE\\n`, where LENGTH counts its own digits."""
    body = f" {key}={value}\n".encode()
    length = len(body)
    while len(str(length)) + len(body) != length:
        length = len(str(length)) + len(body)
    return str(length).encode() + body


def _header(
    name: str, mode: int, size: int, kind: bytes, *, target: str = "", devices: bytes = b"0000000\0"
) -> bytes:  # fmt: skip
    plain, prefix = _ascii(name), b""
    if len(plain) > 100 and kind != _EXTENDED and not _records(name, size, target) and (parts := _split(name)):
        prefix, plain = parts[0].encode(), parts[1].encode()
    elif len(plain) > 100 or kind == _EXTENDED:
        plain = plain[:100].rstrip(b"/")
    fields = [
        plain,
        _octal(mode, 8), _octal(0, 8), _octal(0, 8), _octal(size if size <= _LARGEST else 0, 12), _octal(0, 12),
        b" " * 8, kind, _ascii(target)[:100], b"ustar\0", b"00", b"", b"", devices, devices, prefix,
    ]  # fmt: skip
    checksum = sum(_USTAR.pack(*fields))
    fields[6] = b"%06o\0 " % checksum
    return _USTAR.pack(*fields)


def _ascii(text: str) -> bytes:
    return "".join(letter for letter in text if letter.isascii()).encode()


def _octal(value: int, width: int) -> bytes:
    return b"%0*o\0" % (width - 1, value)
