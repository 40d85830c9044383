"""What the build cache keeps: entries of each kind, their checks, and which of them a prune removes."""

from __future__ import annotations

import stat
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, TypeVar

from prebake.baked.manifest import File
from prebake.documents.table import canonical_json, read_json
from prebake.errors import IntegrityError
from prebake_build.cache import proofs

FORMAT = 1
ENTRY = "entry.json"
PARTS = ".parts.tmp"
"""Suffix of a key's folder of unfinished downloads."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Kept(ABC):
    """Something in the cache that a prune can remove."""

    kind: ClassVar[str]
    folder: Path
    last_use: float
    """Seconds since the epoch."""

    @property
    def key(self) -> str:
        """The name of its lock, without the suffix."""
        return self.folder.name.partition(".")[0]

    @property
    def created(self) -> float:
        """When its files were written, in seconds since the epoch."""
        return (self.folder / "files").stat().st_mtime

    @property
    @abstractmethod
    def size(self) -> int:
        """Bytes of all files."""

    @abstractmethod
    def check(self, *, trust: bool = True) -> None:
        """Compare the files with their hashes. Raises IntegrityError or DocumentError."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Partial(Kept):
    """An unfinished download, which the next fetch goes on with."""

    kind = "partial"
    total: int

    @classmethod
    def read(cls, folder: Path) -> Partial:
        """Look at a folder of unfinished downloads."""
        found = [path.stat() for path in (folder, *folder.rglob("*"))]
        return cls(
            folder=folder,
            last_use=max(status.st_mtime for status in found),
            total=sum(status.st_size for status in found if stat.S_ISREG(status.st_mode)),
        )

    @property
    def created(self) -> float:
        return self.folder.stat().st_ctime

    @property
    def size(self) -> int:
        return self.total

    def check(self, *, trust: bool = True) -> None:
        """Nothing to compare with: the lock has the hashes of whole files."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry(Kept):
    """One checkpoint in the cache."""

    kind = "checkpoint"
    uri: str
    revision: str
    files: tuple[File, ...]

    @classmethod
    def read(cls, folder: Path) -> Entry:
        """Read the entry of a folder. Raises DocumentError."""
        table = read_json(folder / ENTRY, FORMAT, "cache entry")
        entry = cls(
            folder=folder,
            uri=table.take("uri", str),
            revision=table.take("revision", str),
            files=table.items("files", File.from_table),
            last_use=(folder / ENTRY).stat().st_mtime,
        )
        table.finish()
        return entry

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)

    @property
    def text(self) -> str:
        files = [file.to_dict() for file in self.files]
        return canonical_json({"format": FORMAT, "uri": self.uri, "revision": self.revision, "files": files})

    def check(self, *, trust: bool = True) -> None:
        """Compare the files with their hashes; files with a proof (`proofs`) are not read, unless `trust=False`.

        Raises IntegrityError that lists each mismatch.
        """
        label = f"{self.folder} ({self.uri})"
        if not (self.folder / "files").is_dir():
            raise IntegrityError(f"{label}: its files are missing")
        proofs.check(self.folder, self.files, label=label, trust=trust)


_Kept = TypeVar("_Kept", bound=Kept)


def doomed(
    entries: Sequence[_Kept], *, now: float, older_than: float | None = None, max_size: int | None = None
) -> tuple[_Kept, ...]:
    """The entries that a prune removes; `entries` has the most recently used first.

    `older_than`: seconds since the last use. `max_size`: bytes that remain for the most recently used entries.
    """
    found, kept = [], 0
    for entry in entries:
        old = older_than is not None and now - entry.last_use > older_than
        if old or (max_size is not None and kept + entry.size > max_size):
            found.append(entry)
        else:
            kept += entry.size
    return tuple(found)
