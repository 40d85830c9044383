"""Locks between processes: `flock` on a file that may be removed while other processes wait for it."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from prebake.documents.messages import reason

_log = logging.getLogger(__name__)


def locked(path: Path, *, exclusive: bool, wait: bool = True, waiting: str | None = None) -> int:
    """An open handle of `path`, locked until it is closed (or the process ends).

    `waiting` is the message before a wait, in place of one that names the path. Raises BlockingIOError if another
    process holds the lock and `wait` is false, and OSError.
    """
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    while True:
        # Reading is enough for flock, and lets users share a cache whose lock files are 0644.
        handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            try:
                fcntl.flock(handle, operation | fcntl.LOCK_NB)
            except BlockingIOError:
                if not wait:
                    raise
                _log.info("%s", waiting or f"{path}: waiting for another process")
                fcntl.flock(handle, operation)
            # A lock file that was removed meanwhile protects nothing: its successor has another inode.
            if is_still(handle, path):
                return handle
        except BaseException:
            os.close(handle)
            raise
        os.close(handle)


def is_locked(path: Path) -> bool:
    """Whether a process holds a lock on the file; False if there is no such file, or it can't be opened."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return isinstance(error, BlockingIOError)
    finally:
        os.close(handle)
    return False


@contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of an existing folder, after other processes in such a block have left it.

    Where the file system has no locks, there is a warning and no lock. Raises OSError if the folder can't be opened.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.info("%s: waiting for another process", folder)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError as error:  # some network file systems
            _log.warning("%s: cannot be locked (%s): do not run another bake in it", folder, reason(error))
        yield
    finally:
        os.close(handle)


def is_still(handle: int, path: Path) -> bool:
    """Whether the path still leads to the file of this handle."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return False
    mine = os.fstat(handle)
    return (mine.st_dev, mine.st_ino) == (found.st_dev, found.st_ino)
