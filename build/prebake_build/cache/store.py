"""A folder of entries that any number of processes share: locks, temporary folders, removal in one step.

::

    KEY/             an entry, whole or absent
    ├── entry.json   what it is; its mtime is the last use
    └── files/       what is kept; its mtime is when it was written
    KEY.lock         flock: shared while in use, exclusive while written or removed
    KEY.….tmp/       being written, or left by a process that died

The holder of a key's exclusive lock may remove the key's temporary folders: their owner has ended.
"""

from __future__ import annotations

import logging
import os
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import TypeVar

from prebake.baked import layout
from prebake.documents.messages import reason
from prebake.errors import ConfigError, DocumentError
from prebake_build.cache.entries import ENTRY, Kept
from prebake_build.files import digest
from prebake_build.files.flock import is_locked, locked

_Store = TypeVar("_Store", bound="Store")
_Kept = TypeVar("_Kept", bound=Kept)
_log = logging.getLogger(__name__)


def default_folder() -> Path:
    """`PREBAKE_CACHE`, else the user's cache folder: `prebake` below `XDG_CACHE_HOME` or `~/.cache`."""
    if named := os.environ.get(layout.ENV_CACHE):
        return Path(named).expanduser()
    import platformdirs

    return platformdirs.user_cache_path("prebake")


class Store:
    """One kind of entries, in the folder of this name below the cache. Use it as a context manager: the entries that
    it returned are locked against removal until `close`."""

    def __init__(self, folder: Path | None, name: str) -> None:
        self.folder = folder if folder is not None else default_folder()
        self.place = self.folder / name
        self._held: dict[str, int] = {}

    def __enter__(self: _Store) -> _Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Unlock every entry that was returned."""
        while self._held:
            os.close(self._held.popitem()[1])

    def read_entries(self, read: Callable[[Path], _Kept]) -> tuple[_Kept, ...]:
        """All entries, the most recently used first; folders that `read` refuses are skipped with a warning."""
        found = []
        for path in sorted(self.place.glob("*/" + ENTRY)):
            if path.parent.suffix != ".tmp":
                try:
                    found.append(read(path.parent))
                except (DocumentError, OSError) as error:
                    if path.exists():  # else it was removed just now
                        _log.warning("%s", error)
        return tuple(sorted(found, key=lambda entry: (-entry.last_use, entry.folder.name)))

    @contextmanager
    def using(self, entry: Kept) -> Iterator[bool]:
        """Keep an entry from being removed or replaced in the block; yields whether it is still there."""
        handle = None
        if os.access(self.place, os.W_OK):  # nobody removes anything from a read-only cache
            handle = self._lock(entry.key, exclusive=False)
        try:
            yield entry.folder.exists()
        finally:
            if handle is not None:
                os.close(handle)

    def remove(self, entry: Kept) -> bool:
        """Remove one entry; returns False if it is in use."""
        with self._exclusive(entry.key, wait=False) as alone:
            if alone and entry.folder.exists():  # else another process has removed it
                self._discard(entry.folder)
        return alone

    def is_in_use(self, entry: Kept) -> bool:
        """Whether a process uses the entry now, or writes it."""
        return is_locked(self.place / f"{entry.key}.lock")

    def remove_leftovers(self) -> list[Path]:
        """Remove what dead processes left: unlocked temporary folders, and lock files without anything to protect."""
        removed: list[Path] = []
        for lock in sorted(self.place.glob("*.lock")):
            with self._exclusive(lock.stem, wait=False) as alone:
                if alone:
                    removed += self._leftovers(lock.stem)
                    if not [path for path in self.place.glob(f"{lock.stem}*") if path != lock]:
                        lock.unlink(missing_ok=True)
        return removed

    def _discard(self, folder: Path) -> None:
        """Rename, then remove, so that a partly removed entry is never visible."""
        doomed = self._temporary(folder.name.partition(".")[0])
        folder.rename(doomed)
        shutil.rmtree(doomed)

    def _temporary(self, key: str) -> Path:
        return self.place / f"{key}.{uuid.uuid4().hex}.tmp"

    def _leftovers(self, key: str) -> list[Path]:
        found = [path for path in sorted(self.place.glob(f"{key}.*.tmp")) if not self._stays(path)]
        for path in found:
            _log.info("%s: removing what a killed command left", path)
            shutil.rmtree(path)
        return found

    def _stays(self, temporary: Path) -> bool:
        """Whether a later command goes on with this temporary folder."""
        return False

    def _hold(self, key: str) -> None:
        """Hold a shared lock on the key until `close`."""
        if key not in self._held:
            self._held[key] = self._lock(key, exclusive=False)

    def _release(self, key: str) -> None:
        os.close(self._held.pop(key))

    @contextmanager
    def _exclusive(self, key: str, *, wait: bool = True, waiting: str | None = None) -> Iterator[bool]:
        """Hold the key's exclusive lock; with `wait=False`, yield False if another process holds it."""
        try:
            handle = self._lock(key, exclusive=True, wait=wait, waiting=waiting)
        except BlockingIOError:
            yield False
            return
        try:
            yield True
        finally:
            os.close(handle)

    def _lock(self, key: str, *, exclusive: bool, wait: bool = True, waiting: str | None = None) -> int:
        with digest.disk_full_as("build cache", self.folder):
            try:
                self.place.mkdir(parents=True, exist_ok=True)
                return locked(self.place / f"{key}.lock", exclusive=exclusive, wait=wait, waiting=waiting)
            except OSError as error:
                if error.errno in digest.FULL or isinstance(error, BlockingIOError):
                    raise
                raise ConfigError(
                    f"{self.folder}: cannot use this folder as the build cache: {reason(error)}: "
                    "name another with --cache or PREBAKE_CACHE"
                ) from error
