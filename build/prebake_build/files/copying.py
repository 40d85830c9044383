"""Copies files and compares what was copied with its hash, in one pass."""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from prebake.baked.manifest import File
from prebake.documents.messages import reason

_CHUNK = 1 << 22
_FICLONE = 0x40049409
"""ioctl_ficlone(2): the copy shares the source's blocks until one of the two is changed (Btrfs, XFS)."""


def copy_checked(source: Path, target: Path, file: File) -> str | None:
    """Copy the listed file between two folders; returns how the source differs from it, or None.

    The hash is of the bytes that were written, so a source that changes meanwhile is found. Links, devices, pipes and
    what can't be read are differences. Raises OSError from writing.
    """
    try:
        reading = os.open(source / file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return f"{file.path}: missing"
    except OSError as error:
        return f"{file.path}: {reason(error)}"
    try:
        status = os.fstat(reading)
        if not stat.S_ISREG(status.st_mode):
            return f"{file.path}: is not a regular file"
        if status.st_size != file.size:
            return f"{file.path}: expected {file.size:,} bytes, found {status.st_size:,}"
        place = target / file.path
        place.parent.mkdir(parents=True, exist_ok=True)
        writing = os.open(place, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            found = _hash(writing) if _shares_blocks(reading, writing) else _copy(reading, writing, file.size)
        finally:
            os.close(writing)
    except _UnreadableError as error:
        return f"{file.path}: {error}"
    except (FileExistsError, NotADirectoryError):
        return f"{file.path}: is listed twice, or below another file"
    finally:
        os.close(reading)
    return None if found == file.sha256 else f"{file.path}: expected sha256 {file.sha256}, found {found}"


def _shares_blocks(reading: int, writing: int) -> bool:
    try:
        fcntl.ioctl(writing, _FICLONE, reading)
    except OSError:  # another file system, or one that cannot
        return False
    return True


class _UnreadableError(Exception):
    """Reading the source failed; the text says how."""


def _read(handle: int, into: memoryview) -> int:
    try:
        return os.readv(handle, [into])
    except OSError as error:
        raise _UnreadableError(reason(error)) from error


def _hash(handle: int) -> str:
    digest, buffer, position = hashlib.sha256(), bytearray(_CHUNK), 0
    while count := os.preadv(handle, [buffer], position):
        digest.update(memoryview(buffer)[:count])
        position += count
    return digest.hexdigest()


def _copy(reading: int, writing: int, size: int) -> str:
    """Copy at most `size` bytes; a thread hashes each chunk while it is written. Returns the sha256."""
    digest, buffer, left = hashlib.sha256(), bytearray(min(_CHUNK, size)), size
    with ThreadPoolExecutor(max_workers=1) as thread:
        while left and (count := _read(reading, memoryview(buffer)[:left])):
            chunk = memoryview(buffer)[:count]
            hashing = thread.submit(digest.update, chunk)
            written = 0
            while written < count:
                written += os.write(writing, chunk[written:])
            hashing.result()
            left -= count
    return digest.hexdigest()
