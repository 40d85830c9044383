"""Proof that a cached file was hashed: what the file was then, by inode, size, mtime and ctime.

A cached checkpoint is hashed when it is used. `proof.json` beside its files says which of them were, so that the next
use reads nothing: whoever writes to a file changes its ctime, which no program can set. What a failing disk changes
shows in none of them: `prebake cache verify` hashes whatever the proof says.

Who can write to the folder can write a proof. So one counts for nothing where it or the folder belongs to another user
than root or this one, or where others may write to it. Files themselves may be any way: changing them changes ctime.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from prebake.baked.manifest import File
from prebake.documents.table import Table, canonical_json, read_json
from prebake.errors import DocumentError
from prebake_build.files import atomic, digest

FORMAT = 1
NAME = "proof.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class Proven:
    """One file as it was when it had this hash. Times in nanoseconds since the epoch."""

    path: str
    sha256: str
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, folder: Path, file: File) -> Proven | None:
        """As the file is now; None where it cannot be looked at."""
        try:
            found = (folder / file.path).stat()
        except OSError:
            return None
        return cls(
            path=file.path,
            sha256=file.sha256,
            inode=found.st_ino,
            size=found.st_size,
            mtime=found.st_mtime_ns,
            ctime=found.st_ctime_ns,
        )

    @classmethod
    def from_table(cls, table: Table) -> Proven:
        proven = cls(
            path=table.take("path", str),
            sha256=table.take("sha256", str),
            inode=table.take("inode", int),
            size=table.take("size", int),
            mtime=table.take("mtime", int),
            ctime=table.take("ctime", int),
        )
        table.finish()
        return proven

    def to_dict(self) -> dict[str, str | int]:
        return {name: getattr(self, name) for name in self.__slots__}


def check(folder: Path, files: Collection[File], *, label: str, trust: bool = True) -> None:
    """Hold `folder/files` against `files`, hashing what `folder/proof.json` does not prove, and write the proof anew.

    `trust=False` hashes everything. Where the proof cannot be written, such as in a cache that is mounted read-only,
    the next use hashes again. Raises IntegrityError that lists each mismatch.
    """
    place = folder / "files"
    before = {file.path: Proven.of(place, file) for file in files}
    proven = _read(folder) if trust else {}
    known = {path for path, now in before.items() if now is not None and proven.get(path) == now}
    digest.check_files(place, files, label=label, hashed=known)
    if len(known) < len(before) or proven.keys() != before.keys():
        write(folder, files, before)


def write(folder: Path, files: Collection[File], before: Mapping[str, Proven | None] | None = None) -> None:
    """Record that the files have their hashes: with `before`, those that are what they were before they were hashed."""
    now = {file.path: Proven.of(folder / "files", file) for file in files}
    proven = [
        found.to_dict()
        for path, found in sorted(now.items())
        if found is not None and (before is None or found == before.get(path))
    ]
    with suppress(OSError):
        atomic.write_text(folder / NAME, canonical_json({"format": FORMAT, "files": proven}))


def _read(folder: Path) -> dict[str, Proven]:
    """By path; empty where there is no proof, or none that counts."""
    try:
        if not all(_is_ours(path) for path in (folder / NAME, folder)):
            return {}
        table = read_json(folder / NAME, FORMAT, "proof")
        found = table.items("files", Proven.from_table)
        table.finish()
    except (DocumentError, OSError):
        return {}
    return {proven.path: proven for proven in found}


def _is_ours(path: Path) -> bool:
    found = path.lstat()
    # A group that has its user's number is that user's own; other groups have other members.
    others = stat.S_IWOTH if found.st_gid == found.st_uid else stat.S_IWOTH | stat.S_IWGRP
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & others
