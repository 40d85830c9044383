"""The folder of a snapshot: the memory, the table, and a manifest with their sizes and hashes."""

from __future__ import annotations

import hashlib
import json
import os
import platform
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prebake.documents.messages import reason
from prebake.errors import DocumentError, NewerFormatError, SnapshotError
from prebake.snapshot.table import LIMIT, PAGE, Table

TABLE, IMAGE, MANIFEST = "table", "memory.img", "snapshot.json"
FORMAT = 2
NO_IDENTITY = bytes(16)


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """`snapshot.json`."""

    kernel: str
    """Release of the dump's kernel."""
    sizes: dict[str, int]
    hashes: dict[str, str]
    """SHA-256 of each file, in hexadecimal."""
    content: dict[str, int]
    """What memory.img holds: `[heap]`, `[stack]`, `anonymous`, or a file that the process wrote to → bytes."""

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Raises DocumentError, and SnapshotError if there is none."""
        path = folder / MANIFEST
        try:
            document = json.loads(path.read_bytes())
        except OSError as error:
            raise SnapshotError(f"{path}: {reason(error)}: expected a folder that `prebake snapshot` wrote") from error
        except ValueError as error:
            raise DocumentError(f"{path}: it is no JSON: {error}") from error
        return cls._parsed(document, path)

    @classmethod
    def _parsed(cls, document: Any, path: Path) -> Manifest:
        form = document.get("format") if isinstance(document, dict) else None
        if form != FORMAT:
            if isinstance(form, int) and form > FORMAT:
                raise NewerFormatError(f"{path}: format {form} is newer than this Prebake reads ({FORMAT}): update it")
            raise DocumentError(
                f"{path}: expected format {FORMAT}, found {form!r}: make the snapshot again with this Prebake"
            )
        try:
            files = {name: document["files"][name] for name in (IMAGE, TABLE)}
            sizes = {name: int(file["bytes"]) for name, file in files.items()}
            return cls(
                kernel=str(document["kernel"]), sizes=sizes,
                hashes={name: str(file["sha256"]) for name, file in files.items()},
                content={str(name): int(size) for name, size in document["content"].items()},
            )  # fmt: skip
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            wanted = f"`kernel`, `content`, and `bytes` and `sha256` of {IMAGE} and {TABLE}"
            raise DocumentError(f"{path}: expected {wanted}") from error

    def to_bytes(self) -> bytes:
        files = {name: {"bytes": self.sizes[name], "sha256": self.hashes[name]} for name in sorted(self.sizes)}
        document = {"format": FORMAT, "kernel": self.kernel, "files": files, "content": self.content}
        return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"


def read_table(folder: Path) -> Table:
    """Raises SnapshotError."""
    path = folder / TABLE
    try:
        return Table.from_bytes(path.read_bytes())
    except OSError as error:
        raise SnapshotError(f"{path}: {reason(error)}") from error
    except ValueError as error:
        raise SnapshotError(f"{path}: {error}") from error


@contextmanager
def new_image(folder: Path) -> Iterator[int]:
    """A descriptor of the new memory.img, whose first page is left for the identity. `finish` gives it its name;
    without that the file is removed."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{IMAGE}.unfinished"
    image = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        os.write(image, bytes(PAGE))
        yield image
    finally:
        os.close(image)
        path.unlink(missing_ok=True)


def finish(folder: Path, image: int, table: Table, content: dict[str, int]) -> None:
    """Give memory.img and the table their common identity and their names. Raises SnapshotError.

    The identity is a digest of both, so that equal dumps are equal files.
    """
    digest = _digest(image, PAGE)
    digest.update(replace(table, id=NO_IDENTITY).to_bytes())
    table = replace(table, id=digest.digest()[:16])
    os.pwrite(image, table.id, 0)
    dumped = Manifest(kernel=platform.release(), sizes={IMAGE: table.image_bytes},
                      hashes={IMAGE: _digest(image, 0).hexdigest()}, content=content)  # fmt: skip
    _write(folder, table, dumped, (IMAGE,))


def replace_table(folder: Path, table: Table) -> None:
    """Replace the table of a snapshot, whose memory.img stays. Raises SnapshotError and DocumentError."""
    _write(folder, table, Manifest.read(folder))


def _write(folder: Path, table: Table, manifest: Manifest, written: Sequence[str] = ()) -> None:
    """Write the table and the manifest, and give their names to all that is written; the table's last: without one
    there is no snapshot."""
    content = table.to_bytes()
    if len(content) > LIMIT:
        raise SnapshotError(f"the table would have {len(content)} bytes, and at most {LIMIT} are allowed")
    hashes = {**manifest.hashes, TABLE: hashlib.sha256(content).hexdigest()}
    manifest = replace(manifest, sizes={**manifest.sizes, TABLE: len(content)}, hashes=hashes)
    for name, data in ((MANIFEST, manifest.to_bytes()), (TABLE, content)):
        (folder / f"{name}.unfinished").write_bytes(data)
    (folder / TABLE).unlink(missing_ok=True)
    for name in (*written, MANIFEST, TABLE):
        path = folder / f"{name}.unfinished"
        path.chmod(0o644)
        path.replace(folder / name)


def _digest(file: int, begin: int) -> Any:
    digest = hashlib.sha256()
    while piece := os.pread(file, 1 << 20, begin):
        digest.update(piece)
        begin += len(piece)
    return digest


def findings(folder: Path, *, hashes: bool = True) -> list[str]:
    """What is wrong with the files of a snapshot; empty if nothing is. Without `hashes` only their sizes, the table's
    checksum and the identity are compared."""
    try:
        manifest = Manifest.read(folder)
    except (SnapshotError, DocumentError) as error:
        return [str(error)]
    found: list[str] = []
    table = None
    try:
        table = read_table(folder)
    except SnapshotError as error:
        found.append(str(error))
    for name in (IMAGE, TABLE):
        found += _differs(folder / name, manifest.sizes[name], manifest.hashes[name] if hashes else None)
    if table is not None and not found:
        with (folder / IMAGE).open("rb") as image:
            if table.image_bytes != manifest.sizes[IMAGE] or image.read(16) != table.id:
                found.append(f"{folder / IMAGE}: belongs to another table")
    return found


def _differs(path: Path, size: int, expected: str | None) -> Iterator[str]:
    try:
        with path.open("rb") as file:
            found = os.fstat(file.fileno()).st_size
            if found != size:
                yield f"{path}: has {found} bytes, expected {size}"
            elif expected is not None and (digest := _digest(file.fileno(), 0).hexdigest()) != expected:
                yield f"{path}: sha256 {digest}, expected {expected}"
    except OSError as error:
        yield f"{path}: {reason(error)}"
