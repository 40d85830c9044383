"""The build cache: checkpoints as fetched, one folder for each (URI, revision).

::

    ~/.cache/prebake/            --cache, PREBAKE_CACHE, else XDG_CACHE_HOME/prebake
    └── checkpoints/
        ├── 0123456789abcdef/           sha256 of URI and revision
        │   ├── entry.json              URI, revision and files; its mtime is the last use
        │   ├── proof.json              the files that were hashed, and their state at that time
        │   └── files/
        ├── 0123456789abcdef.lock       flock: shared while in use, exclusive while written or removed
        ├── 0123456789abcdef.parts.tmp/ unfinished downloads, which the next fetch of the key goes on with
        └── 0123456789abcdef.….tmp/     being fetched, or left by a process that died

`prebake_build.cache.store` has the locks.
"""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from prebake.documents.messages import reason
from prebake.errors import DocumentError, IntegrityError, SourceError
from prebake_build.cache import proofs
from prebake_build.cache.entries import ENTRY, PARTS, Entry, Partial
from prebake_build.cache.store import Store
from prebake_build.files import atomic, digest
from prebake_build.sources import Resolved, ResolvesByFetching, Source, parts

_FETCH_FIRST = "run `python -m prebake_build.baking.stage fetch` first"

_log = logging.getLogger(__name__)


class Cache(Store):
    """A folder of checkpoints, shared by any number of processes.

    A checkpoint that `checkpoint` returned is locked against `prune` until `close`: use the cache as a context manager.
    With `offline=True` it contacts no source, and a missing checkpoint is a SourceError.
    """

    def __init__(self, folder: Path | None = None, *, offline: bool = False) -> None:
        super().__init__(folder, "checkpoints")
        self.offline = offline

    @property
    def checkpoints(self) -> Path:
        """The folder of the entries."""
        return self.place

    def resolve(self, source: Source) -> Resolved:
        """`source.resolve()`; files that this fetches become an entry.

        Raises SourceError, IntegrityError.
        """
        if self.offline:
            raise SourceError(f"{source.uri}: is not resolved, and this step has no network: {_FETCH_FIRST}")
        if not isinstance(source, ResolvesByFetching):
            with digest.disk_full_as(source.uri, self.folder):
                return source.resolve()
        key = _key(source.uri, "")
        with self._exclusive(key), self._scratch(key, source.uri) as scratch:
            with parts.keeping(self._parts(key)):
                resolved = source.resolve_into(scratch / "files")
            entry_key = _key(source.uri, resolved.revision)
            # An entry in use exists already, and our own shared lock on it would block the exclusive one forever.
            if entry_key not in self._held:
                with self._exclusive(entry_key):
                    if self._entry(entry_key, resolved, verify=False) is None:
                        self._install(entry_key, scratch, source.uri, resolved)
        return resolved

    def checkpoint(self, source: Source, resolved: Resolved, *, verify: bool = False) -> Path:
        """The folder with the files of `resolved`, fetched if the cache lacks them.

        A hit does not contact upstream. It hashes the files that changed since they were last hashed, or all of them
        with `verify`; a damaged entry is fetched again. Raises SourceError (upstream unreachable, disk full), and
        IntegrityError if the fetched files differ from the locked ones.
        """
        key = _key(source.uri, resolved.revision)
        while True:
            self._hold(key)
            entry = self._entry(key, resolved, verify=verify)
            if entry is not None:
                # Record the last use; this fails if the entry is another user's, or the cache is mounted read-only.
                with suppress(OSError):
                    os.utime(entry.folder / ENTRY)
                return entry.folder / "files"
            self._release(key)
            if self.offline:
                raise SourceError(
                    f"{source.uri}: {self.folder} has no intact copy of {resolved.revision}, and this step has no "
                    f"network: {_FETCH_FIRST}"
                )
            with self._exclusive(key):
                if self._entry(key, resolved, verify=verify) is None:
                    self._fetch(key, source, resolved)

    def adopt(self, source: Source, resolved: Resolved, files: Path) -> None:
        """Copy a checkpoint from another cache into this one, so that this one can be used elsewhere.

        The copy has no proof that it was hashed, so equal checkpoints give equal folders, whatever their inodes.
        """
        key = _key(source.uri, resolved.revision)
        with self._exclusive(key), self._scratch(key, source.uri) as scratch:
            shutil.copytree(files, scratch / "files", dirs_exist_ok=True)
            self._install(key, scratch, source.uri, resolved, hashed=False)

    def entries(self) -> tuple[Entry, ...]:
        """All entries, the most recently used first; other folders are skipped with a warning."""
        return self.read_entries(Entry.read)

    def partials(self) -> tuple[Partial, ...]:
        """All unfinished downloads, the most recently continued first."""
        found = []
        for path in self.place.glob(f"*{PARTS}"):
            with suppress(FileNotFoundError):  # its fetch has just ended
                found.append(Partial.read(path))
        return tuple(sorted(found, key=lambda partial: (-partial.last_use, partial.key)))

    def _entry(self, key: str, resolved: Resolved, *, verify: bool) -> Entry | None:
        folder = self.checkpoints / key
        if not folder.is_dir():
            return None
        try:
            entry = Entry.read(folder)
            entry.check(trust=not verify)
        except (DocumentError, IntegrityError, OSError) as error:
            _log.warning("%s%s", error, "" if self.offline else "\nFetching it again.")
            return None
        return entry if entry.files == resolved.files else None

    def _fetch(self, key: str, source: Source, resolved: Resolved) -> None:
        self._check_space(source.uri, sum(file.size for file in resolved.files))
        with self._scratch(key, source.uri) as scratch:
            with parts.keeping(self._parts(key)):
                source.fetch(resolved, scratch / "files")
            digest.check_files(scratch / "files", resolved.files, label=source.uri)
            self._install(key, scratch, source.uri, resolved)

    def _install(self, key: str, scratch: Path, uri: str, resolved: Resolved, *, hashed: bool = True) -> None:
        folder = self.checkpoints / key
        entry = Entry(folder=folder, uri=uri, revision=resolved.revision, files=resolved.files, last_use=0)
        atomic.write_text(scratch / ENTRY, entry.text)
        if hashed:  # just now: by `resolve_into`, or in comparison with the lock
            proofs.write(scratch, entry.files)
        atomic.sync_tree(scratch)
        if folder.exists():
            self._discard(folder)
        scratch.rename(folder)
        atomic.sync_folder(self.checkpoints)

    def _check_space(self, uri: str, size: int) -> None:
        free = shutil.disk_usage(self.checkpoints).free
        if free < size:
            raise SourceError(
                f"{uri}: needs {size:,} bytes, but {self.folder} has {free:,} free: free some space, "
                "run `prebake cache prune`, or put the cache elsewhere with --cache or PREBAKE_CACHE"
            )

    @contextmanager
    def _scratch(self, key: str, uri: str) -> Iterator[Path]:
        """A folder with an empty `files` in it, removed afterwards unless it was renamed. Needs the exclusive lock."""
        self._leftovers(key)
        scratch = self._temporary(key)
        try:
            with digest.disk_full_as(uri, self.folder):
                (scratch / "files").mkdir(parents=True)
                yield scratch
        except OSError as error:
            raise SourceError(f"{uri}: cannot fetch into {scratch}: {reason(error)}") from error
        finally:
            shutil.rmtree(scratch, ignore_errors=True)

    def _parts(self, key: str) -> Path:
        return self.checkpoints / f"{key}{PARTS}"

    def _stays(self, temporary: Path) -> bool:
        return temporary.name.endswith(PARTS) and any(temporary.iterdir())


def _key(uri: str, revision: str) -> str:
    return hashlib.sha256(f"{uri}\n{revision}".encode()).hexdigest()[:16]
