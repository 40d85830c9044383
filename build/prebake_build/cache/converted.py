"""The build cache: models as they were baked, one folder for each recipe and the versions that decide its bytes.

::

    ~/.cache/prebake/
    └── converted/
        ├── 0123456789abcdef0123456789abcdef/     what `prebake_build.baking.environment` computes
        │   ├── entry.json                        model, versions, hash of the manifest; its mtime is the last use
        │   └── files/                            the baked folder
        └── ….lock, ….tmp                         as `prebake_build.cache.store` has them

An entry is taken by copying it, and every byte of the copy is hashed: the manifest against `entry.json`, all other
files against the manifest. So a failing disk or a changed file is found, and a later change of what was baked does not
reach the cache. Whoever can write a whole entry can write another model, so entries of other users are not taken.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from prebake.baked import layout
from prebake.baked.manifest import File, Manifest
from prebake.documents.messages import reason
from prebake.documents.sizes import format_size
from prebake.documents.table import canonical_json, read_json
from prebake.errors import DocumentError, IntegrityError, PrebakeError
from prebake_build.cache import proofs
from prebake_build.cache.entries import ENTRY, Kept, doomed
from prebake_build.cache.store import Store
from prebake_build.files import atomic, digest
from prebake_build.files.copying import copy_checked

FORMAT = 1
ENV_CONVERTED_SIZE = "PREBAKE_CONVERTED_SIZE"
LIMIT = 20_000_000_000
"""Bytes of all entries, unless the user says otherwise."""
SPARE = 2_000_000_000
"""Bytes of the disk that stay free, or a twentieth of a small one: for that, entries go, or are not written."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Conversion(Kept):
    """One baked model in the cache."""

    kind = "converted"
    of: str
    """The key that it was written for: a folder that was renamed is not taken for another model."""
    name: str
    uri: str
    revision: str
    recipe: str
    set_digest: str
    manifest: File
    total: int
    """Bytes of all files."""
    versions: Mapping[str, str] = field(default_factory=dict)
    """Package → version, of those that decided the bytes."""

    @classmethod
    def read(cls, folder: Path) -> Conversion:
        """Read the entry of a folder. Raises DocumentError."""
        table = read_json(folder / ENTRY, FORMAT, "cache entry")
        entry = cls(
            folder=folder,
            last_use=(folder / ENTRY).stat().st_mtime,
            of=table.take("key", str),
            name=table.take("name", str),
            uri=table.take("uri", str),
            revision=table.take("revision", str),
            recipe=table.take("recipe", str),
            set_digest=table.take("set_digest", str),
            manifest=File.from_table(table.table("manifest")),
            total=table.take("size", int),
            versions=table.mapping("versions", str, {}),
        )
        table.finish()
        return entry

    @classmethod
    def of_model(cls, folder: Path, key: str, baked: Path, versions: Mapping[str, str]) -> Conversion:
        """What the entry `folder` says of a baked folder. Raises DocumentError."""
        manifest, file = Manifest.read(baked), digest.file_of(baked, layout.MANIFEST)
        return cls(
            folder=folder, last_use=0, of=key, name=manifest.name, uri=manifest.source.uri,
            revision=manifest.source.revision, recipe=manifest.converter.get("recipe", ""),
            set_digest=manifest.set_digest, manifest=file, versions=dict(versions),
            total=file.size + sum(listed.size for listed in manifest.files),
        )  # fmt: skip

    @property
    def size(self) -> int:
        return self.total

    @property
    def text(self) -> str:
        return canonical_json({
            "format": FORMAT, "key": self.of, "name": self.name, "uri": self.uri, "revision": self.revision,
            "recipe": self.recipe, "set_digest": self.set_digest, "manifest": self.manifest.to_dict(),
            "size": self.total, "versions": dict(self.versions),
        })  # fmt: skip

    def copy(self, target: Path) -> None:
        """Copy the baked folder into an empty one, and hash what was copied.

        Raises IntegrityError or DocumentError for a damaged entry, and OSError from writing.
        """
        self._require(copy_checked(self.folder / "files", target, self.manifest))
        manifest = Manifest.read(target)
        if (manifest.set_digest, manifest.converter.get("recipe")) != (self.set_digest, self.recipe):
            self._require(f"{layout.MANIFEST}: is of another model")
        self._require(*(copy_checked(self.folder / "files", target, file) for file in manifest.files))

    def check(self, *, trust: bool = False) -> None:
        """Hash every file where it is. Raises IntegrityError or DocumentError for a damaged entry."""
        place = self.folder / "files"
        label = f"{self.folder} ({self.name})"
        if self.of != self.folder.name:
            raise IntegrityError(f"{label}: was written as {self.of}")
        digest.check_files(place, [self.manifest, *Manifest.read(place).files], label=label)

    def _require(self, *findings: str | None) -> None:
        if found := [finding for finding in findings if finding]:
            raise IntegrityError(f"{self.folder} ({self.name}): not the files that were promised:\n  "
                                 + "\n  ".join(found))  # fmt: skip


class Conversions(Store):
    """Baked models, shared by any number of processes. `limit`: bytes of all entries."""

    def __init__(self, folder: Path | None = None, *, limit: int = LIMIT) -> None:
        super().__init__(folder, "converted")
        self.limit = limit

    def size_of(self, key: str, recipe: str) -> int | None:
        """Bytes that `take` would write; None if there is no such entry."""
        with suppress(PrebakeError, OSError):
            return self._open(key, recipe).size
        return None

    def take(self, key: str, target: Path, recipe: str, *, alone: bool = False) -> bool:
        """Copy the entry into an empty folder; returns False, and leaves that empty, if there is no whole entry.

        A damaged entry, and one that others could have written, is left out with a warning. `alone` says that the
        caller is in `alone(key)`. Raises OSError from writing into the folder.
        """
        folder = self.place / key
        if not folder.is_dir():
            return False
        try:
            if not alone:
                self._hold(key)
            self._open(key, recipe).copy(target)
            with suppress(OSError):  # the cache is mounted read-only, or root's
                os.utime(folder / ENTRY)
            return True
        except (PrebakeError, FileNotFoundError) as error:
            if folder.exists():  # else it was removed before it was locked
                _log.warning("%s\nConverting it again.", error)
            _empty(target)
            return False
        finally:
            if not alone and key in self._held:
                self._release(key)

    def _open(self, key: str, recipe: str) -> Conversion:
        folder = self.place / key
        if not proofs.is_ours(folder):
            raise IntegrityError(f"{folder}: others than this user can write to it")
        entry = Conversion.read(folder)
        if not proofs.is_ours(folder / ENTRY):
            raise IntegrityError(f"{folder / ENTRY}: others than this user can write to it")
        if (entry.of, entry.recipe) != (key, recipe):
            raise IntegrityError(f"{folder} ({entry.name}): was written as {entry.of}, of the recipe {entry.recipe}")
        return entry

    @contextmanager
    def alone(self, key: str, waiting: str) -> Iterator[bool]:
        """Hold the key while its model is converted; other builds of it wait, after the message `waiting`.

        If the folder can't be used, there is a warning and no lock, and the block gets False.
        """
        handle = None
        try:
            handle = self._lock(key, exclusive=True, waiting=waiting)
        except PrebakeError as error:
            _log.warning("the converted model is not kept: %s", error)
        try:
            yield handle is not None
        finally:
            if handle is not None:
                os.close(handle)

    def keep(self, key: str, baked: Path, versions: Mapping[str, str]) -> bool:
        """Copy a baked folder into the cache, in the place of an older entry. Use it in `alone(key)`.

        Returns False, after a message, if it is too large for the cache or the disk: that is no reason to fail.
        """
        scratch = self._temporary(key)
        try:
            entry = Conversion.of_model(scratch, key, baked, versions)
            self._leftovers(key)
            if refused := self._make_room(key, entry.size):
                _log.warning("%s: not kept in the build cache: %s", entry.name, refused)
                return False
            (scratch / "files").mkdir(parents=True)
            for file in (entry.manifest, *Manifest.read(baked).files):
                entry._require(copy_checked(baked, scratch / "files", file))
            atomic.write_text(scratch / ENTRY, entry.text)
            for path in (scratch, scratch / ENTRY):  # else `take` would not trust it, under a umask such as 002
                path.chmod(path.stat().st_mode & 0o7755)
            atomic.sync_tree(scratch)
            place = self.place / key
            if place.exists():
                self._discard(place)
            scratch.rename(place)
            atomic.sync_folder(self.place)
        except (OSError, IntegrityError, DocumentError) as error:
            what = reason(error) if isinstance(error, OSError) else str(error)
            _log.warning("%s: not kept in the build cache: %s", baked.name, what)
            return False
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return True

    def entries(self) -> tuple[Conversion, ...]:
        """All entries, the most recently used first; other folders are skipped with a warning."""
        return self.read_entries(Conversion.read)

    def _make_room(self, key: str, size: int) -> str | None:
        """Remove the least recently used entries until there is room for `size` bytes; returns why there is none."""
        if size > self.limit:
            return f"it takes {format_size(size)}, and the limit is {format_size(self.limit)} (--converted-size)"
        usage = shutil.disk_usage(self.place)
        spare = min(SPARE, usage.total // 20)
        lacking = size + spare - usage.free
        others = [entry for entry in self.entries() if entry.folder.name != key]
        if lacking > sum(entry.size for entry in others):
            return (
                f"it takes {format_size(size)}, the disk has {format_size(usage.free)} free, and {format_size(spare)} "
                "stay free"
            )
        remove = {entry.key for entry in doomed(others, now=0, max_size=self.limit - size)}
        for entry in reversed(others):
            if (entry.key in remove or lacking > 0) and self.remove(entry):
                _log.info("%s: removed from the build cache, to make room: %s", entry.name, entry.folder)
                lacking -= entry.size
                others.remove(entry)
        if lacking > 0 or sum(entry.size for entry in others) > self.limit - size:
            return f"it takes {format_size(size)}, and other builds use what would have to go"
        return None


def _empty(folder: Path) -> None:
    for path in folder.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
