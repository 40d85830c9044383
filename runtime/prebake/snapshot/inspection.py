"""What is in the folder of a snapshot, and whether it fits here."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from prebake.documents.columns import columns
from prebake.documents.sizes import format_size
from prebake.errors import SnapshotError
from prebake.snapshot.features import level, names
from prebake.snapshot.folder import IMAGE, TABLE, Manifest, read_table
from prebake.snapshot.memory import as_it_is
from prebake.snapshot.programs import Library
from prebake.snapshot.table import COPIED, MEMORY_IMG, NO_FILE, SHARED, File, Mapping, Table

LIBRARIES = "pages of libraries"
_KINDS = {"[heap]": "heap", "[stack]": "stack", "anonymous": "other anonymous memory"}
_SHOWN = 5


def describe(folder: Path) -> dict[str, Any]:
    """Everything about a snapshot, for JSON. Raises SnapshotError and DocumentError."""
    manifest, table = Manifest.read(folder), read_table(folder)
    features = names(table.cpu)
    ahead = [sum(reading.bytes for reading in table.readings if (reading.file == MEMORY_IMG) is ours)
             for ours in (True, False)]  # fmt: skip
    return {
        "folder": str(folder),
        "id": table.id.hex(),
        "bytes": {IMAGE: table.image_bytes, TABLE: manifest.sizes[TABLE]},
        "kernel": manifest.kernel,
        "processor": {"level": level(features), "features": features},
        "memory_img": manifest.content,
        "mappings": {kind: {"count": count, "bytes": size} for kind, (count, size) in _by_kind(table).items()},
        "read_ahead": {IMAGE: ahead[0], "libraries": ahead[1], "ranges": len(table.readings)},
        "variables": list(table.bound),
        "mapped_files": [file.path for file in table.files if file.head],
        "watched_files": [file.path for file in table.files if not file.head],
        "unfit_here": [*_processor(table), *differing(table.files)],
    }


def _by_kind(table: Table) -> dict[str, tuple[int, int]]:
    found = dict.fromkeys(("memory.img", "memory.img, copied at each start", "files", "files, shared", "anonymous"),
                          (0, 0))  # fmt: skip
    for mapping in table.mappings:
        kind = _kind(mapping)
        count, size = found[kind]
        found[kind] = count + 1, size + mapping.bytes
    return found


def _kind(mapping: Mapping) -> str:
    if mapping.file == NO_FILE:
        return "anonymous"
    if mapping.file == MEMORY_IMG:
        return "memory.img, copied at each start" if mapping.kind == COPIED else "memory.img"
    return "files, shared" if mapping.kind == SHARED else "files"


def _processor(table: Table) -> Iterator[str]:
    try:
        here = Library().cpu()
    except SnapshotError:
        return  # the library is where snapshots are made; `prebake-restore --check` compares too
    missing = names([wanted & ~found for wanted, found in zip(table.cpu, here, strict=True)])
    if missing:
        yield f"this processor lacks {', '.join(missing)}"


def differing(files: Iterable[File]) -> Iterator[str]:
    """What is different about these files here, in the words of `native/restore.c`."""
    for file in files:
        try:
            found = as_it_is(file.path, head=bool(file.head))
        except OSError:
            yield f"{file.path} is missing"
            continue
        # images keep seconds only, the build has the rest too
        times = {file.mtime_ns, file.mtime_ns - file.mtime_ns % 10**9}
        if found.bytes != file.bytes:
            yield f"{file.path} has another size"
        elif found.mtime_ns not in times:
            yield f"{file.path} has another modification time"
        elif found.head != file.head:
            yield f"{file.path} has another content"


def lines(document: dict[str, Any]) -> str:
    """The same as text."""
    sizes, processor, ahead = document["bytes"], document["processor"], document["read_ahead"]
    mappings = document["mappings"]
    rows = [
        ("snapshot", document["id"]),
        (IMAGE, f"{format_size(sizes[IMAGE])}: {_content(document['memory_img'])}"),
        (TABLE, f"{format_size(sizes[TABLE])}: {sum(each['count'] for each in mappings.values())} mappings"),
        *((f"  {kind}", f"{each['count']}, {format_size(each['bytes'])}")
          for kind, each in mappings.items() if each["count"]),
        ("read ahead", f"{format_size(ahead[IMAGE])} of {IMAGE} and {format_size(ahead['libraries'])} of libraries, "
                       f"in {ahead['ranges']} ranges" if ahead["ranges"] else "nothing (prebake snapshot --rehearse)"),
        ("kernel", document["kernel"]),
        ("processor", f"{processor['level']}: {' '.join(processor['features'])}"),
        ("variables", ", ".join(document["variables"]) or "none"),
        ("files", f"{len(document['mapped_files'])} mapped, {len(document['watched_files'])} others compared at each "
                  "start"),
        ("here", _here(document["unfit_here"])),
    ]  # fmt: skip
    return "\n".join(columns(rows))


def _content(content: dict[str, int]) -> str:
    """`heap 150 MB, pages of libraries 40 MB (libtorch_cpu.so 20 MB, …), …`"""
    libraries = {name: size for name, size in content.items() if name not in _KINDS}
    largest = sorted(libraries, key=libraries.__getitem__, reverse=True)[:_SHOWN]
    told = [(size, f"{_KINDS[name]} {format_size(size)}") for name, size in content.items() if name in _KINDS]
    if libraries:
        some = ", ".join(f"{Path(name).name} {format_size(libraries[name])}" for name in largest)
        total = sum(libraries.values())
        told.append((total, f"{LIBRARIES} {format_size(total)} ({some})"))
    return ", ".join(text for _, text in sorted(told, reverse=True))


def _here(unfit: list[str]) -> str:
    if not unfit:
        return "fits"
    more = f", and {len(unfit) - _SHOWN} more" if len(unfit) > _SHOWN else ""
    return f"does not fit: {'; '.join(unfit[:_SHOWN])}{more}"
