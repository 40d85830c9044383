"""Proofs that cached files were hashed: inode, size, mtime and ctime of each file at that time.

A cached checkpoint is hashed when it is used. `proof.json` next to its files records which were hashed, so the next use
reads nothing: every write to a file changes its ctime, which programs can't set. Changes by a failing disk do not show
there; `prebake cache verify` hashes every file, regardless of the proof.

Anyone who can write to the folder can write a proof. So a proof is ignored if it or the folder belongs to a user other
than root or this one, or if others may write to it. The files' own permissions do not matter: a change of a file
changes its ctime.
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
    """The state of one file when it had this hash. Times in nanoseconds since the epoch."""

    path: str
    sha256: str
    inode: int
    size: int
    mtime: int
    ctime: int

    @classmethod
    def of(cls, folder: Path, file: File) -> Proven | None:
        """The file's current state; None if it can't be examined."""
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
    """Compare `folder/files` with `files`, hash what `folder/proof.json` does not prove, and update the proof.

    `trust=False` hashes everything. If the proof can't be written, for example on a read-only mount, the next use
    hashes again. Raises IntegrityError that lists each mismatch.
    """
    place = folder / "files"
    before = {file.path: Proven.of(place, file) for file in files}
    proven = _read(folder) if trust else {}
    known = {path for path, now in before.items() if now is not None and proven.get(path) == now}
    digest.check_files(place, files, label=label, hashed=known)
    if len(known) < len(before) or proven.keys() != before.keys():
        write(folder, files, before)


def write(folder: Path, files: Collection[File], before: Mapping[str, Proven | None] | None = None) -> None:
    """Record that the files have their hashes; with `before`, only files that did not change while they were hashed."""
    now = {file.path: Proven.of(folder / "files", file) for file in files}
    proven = [
        found.to_dict()
        for path, found in sorted(now.items())
        if found is not None and (before is None or found == before.get(path))
    ]
    with suppress(OSError):
        atomic.write_text(folder / NAME, canonical_json({"format": FORMAT, "files": proven}))


def _read(folder: Path) -> dict[str, Proven]:
    """The proven files by path; empty if there is no trustworthy proof."""
    try:
        if not all(is_ours(path) for path in (folder / NAME, folder)):
            return {}
        table = read_json(folder / NAME, FORMAT, "proof")
        found = table.items("files", Proven.from_table)
        table.finish()
    except (DocumentError, OSError):
        return {}
    return {proven.path: proven for proven in found}


def is_ours(path: Path) -> bool:
    """Whether only root and this user can write to the file or folder. Raises OSError."""
    found = path.lstat()
    # A group with the same id as the user is that user's private group; other groups may have other members.
    others = stat.S_IWOTH if found.st_gid == found.st_uid else stat.S_IWOTH | stat.S_IWGRP
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & others
