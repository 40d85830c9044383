"""Made-up environments: packages in a folder, with the RECORD files that an installer writes."""

from __future__ import annotations

import base64
import csv
import hashlib
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

from prebake_build.slimming.elf import Section

_ALLOCATED, _PROGBITS, _STRTAB, _NOBITS = 2, 1, 3, 8


def install(site: Path, name: str, files: Mapping[str, str | bytes], version: str = "1.0") -> Path:
    """Install a package with these files; its RECORD."""
    info = site / f"{name}-{version}.dist-info"
    contents = {**files, f"{info.name}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
                f"{info.name}/licenses/LICENSE": "free\n"}  # fmt: skip
    rows = []
    for path, content in contents.items():
        data = content.encode() if isinstance(content, str) else content
        (site / path).parent.mkdir(parents=True, exist_ok=True)
        (site / path).write_bytes(data)
        rows.append((path, record_hash(data), str(len(data))))
    with (info / "RECORD").open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([*rows, (f"{info.name}/RECORD", "", "")])
    return info / "RECORD"


def record_hash(data: bytes) -> str:
    return "sha256=" + base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()


def environment(prefix: Path) -> Path:
    """An environment without packages; its site-packages."""
    site = prefix / "lib" / "python3.11" / "site-packages"
    site.mkdir(parents=True)
    return site


def library(sections: Sequence[tuple[str, bytes, bool]], *, kind: int = 3, appended: bytes = b"") -> bytes:
    """An ELF file with one segment over the sections (name, content, whether it is mapped) that are mapped."""
    mapped = [entry for entry in sections if entry[2]]
    body, offset, table = bytearray(), 64 + 56, [Section(*[0] * 10)]
    names = bytearray(b"\0")
    end = offset + sum(len(content) for _, content, _ in mapped)
    for name, content, allocated in sections:
        table.append(
            Section(len(names), _PROGBITS, _ALLOCATED if allocated else 0, 0, offset, len(content), 0, 0, 1, 0)
        )
        names += name.encode() + b"\0"
        body += content
        offset += len(content)
    table.append(Section(len(names), _STRTAB, 0, 0, offset, len(names) + len(".shstrtab") + 1, 0, 0, 1, 0))
    names += b".shstrtab\0"
    body += names
    table_at = offset + len(names)
    header = struct.pack("<16sHHIQQQIHHHHHH", b"\x7fELF\x02\x01\x01", kind, 62, 1, 0, 64, table_at, 0, 64, 56, 1, 64,
                         len(table), len(table) - 1)  # fmt: skip
    segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0, 0, end, end, 4096)
    return header + segment + bytes(body) + b"".join(struct.pack("<IIQQQQIIQQ", *entry) for entry in table) + appended
