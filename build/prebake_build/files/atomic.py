"""Writes documents and replaces folders atomically, and makes files and renames survive a power failure."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import glob
import os
import shutil
import tempfile
from contextlib import suppress
from pathlib import Path

from prebake_build.files.flock import is_still

REPLACED = "~"
"""Suffix of a folder that was moved out of the way."""
_AT_FDCWD = -100
_RENAME_EXCHANGE = 2


def write_text(path: Path, text: str, *, new: bool = False) -> None:
    """Write a document atomically: temporary file in the same folder, fsync, rename. Mode 0666 minus the umask.

    Temporary files that killed processes left are removed: those that nobody holds locked. Raises OSError and, with
    `new`, FileExistsError if the file exists.
    """
    if new and os.path.lexists(path):
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(path))
    _clear_temporaries(path)
    handle, name = _temporary(path)
    try:
        with os.fdopen(handle, "w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            # mkstemp creates files as 0600, but others must read locks in a checkout and entries in a shared cache.
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)  # while it is locked
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def _temporary(path: Path) -> tuple[int, str]:
    """A new file beside the document, open and locked: another process does not take it for a leftover."""
    while True:
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        with suppress(OSError):  # a file system without locks, where nothing is cleared either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if is_still(handle, Path(name)):  # it was not cleared before it was locked
            return handle, name
        os.close(handle)


def _clear_temporaries(path: Path) -> None:
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        with suppress(OSError):  # another process's, or another user's
            handle = os.open(leftover, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                leftover.unlink()
            finally:
                os.close(handle)


def _umask() -> int:
    mask = os.umask(0o022)
    os.umask(mask)
    return mask


def sync_folder(folder: Path) -> None:
    """Make a rename in `folder` survive a power failure."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """fsync every file and folder below `folder`, and itself; links are part of their folders."""
    for path in (folder, *(path for path in folder.rglob("*") if not path.is_symlink())):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def put_in_place(new: Path, place: Path) -> None:
    """Move a finished folder to its place on the same file system; a folder that is there is swapped for it.

    The old folder is then at `new`, or beside it as `new~` where the system cannot swap. Raises OSError.
    """
    if not place.exists():
        new.rename(place)
    else:
        _exchange(new, place)
    sync_folder(place.parent)


def clear_leftovers(output: Path, prefix: str) -> None:
    """Remove the work folders that killed commands left, after putting back a folder that one of them had moved away.

    Only while no other command uses the output. Raises OSError.
    """
    for work in sorted(output.glob(f"{glob.escape(prefix)}*")):
        for replaced in work.glob(f"*{REPLACED}"):
            place = output / replaced.name.removesuffix(REPLACED)
            if not place.exists():
                replaced.rename(place)
        shutil.rmtree(work, ignore_errors=True)


def _exchange(new: Path, old: Path) -> None:
    """Swap two folders in one step (renameat2 of Linux 3.15; see man 2 rename).

    If the kernel or the file system does not support that, in two steps: in between, the old folder is in the work
    folder, and after a crash the next run puts it back.
    """
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
        failed = rename(_AT_FDCWD, os.fsencode(new), _AT_FDCWD, os.fsencode(old), _RENAME_EXCHANGE)
        code = ctypes.get_errno() if failed else 0
    except (AttributeError, OSError):
        code = errno.ENOSYS
    if code in (errno.ENOSYS, errno.EINVAL, errno.EXDEV, errno.ENOTSUP):
        replaced = old.rename(new.with_name(new.name + REPLACED))
        try:
            new.rename(old)
        except OSError:
            replaced.rename(old)  # it would go with the work folder
            raise
    elif code:
        raise OSError(code, os.strerror(code), str(old))
