"""Hashes and lists files on disk, and compares them with a list."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from prebake.baked import layout
from prebake.baked.manifest import File
from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError, IntegrityError, PrebakeError, SourceError
from prebake_build.files import progress

CHUNK = 1 << 20
"""Bytes per read: large enough that hashing takes the time, not the loop."""

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a write when the disk or the user's quota is full."""


def sha256_of(path: Path) -> str:
    """The sha256 of a file, 64 hexadecimal digits, in constant memory."""
    return _hash(path, "sha256")


def md5_of(path: Path) -> str:
    """The md5 of a file, only for comparison with a table that upstream publishes."""
    return _hash(path, "md5")


def _hash(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
            progress.add(len(chunk))
    return digest.hexdigest()


def paths_of(folder: Path, *, hidden: bool = True) -> tuple[str, ...]:
    """Every regular file below `folder`, as sorted relative POSIX paths.

    `hidden=False` leaves out names that start with a dot. Raises IntegrityError that lists every symlink, device and
    name that a manifest can't contain: if they were skipped, the result would differ from the folder.
    """
    findings: list[str] = []
    paths = list(_walk(folder, "", hidden, findings))
    if findings:
        raise IntegrityError(f"{folder}: not only plain files:\n  " + "\n  ".join(sorted(findings)))
    return tuple(sorted(paths))


def _walk(folder: Path, prefix: str, hidden: bool, findings: list[str]) -> Iterator[str]:
    with os.scandir(folder) as entries:
        for entry in entries:
            if not hidden and entry.name.startswith("."):
                continue
            path = prefix + entry.name
            if entry.is_symlink():
                findings.append(f"{path}: is a symlink to {Path(entry.path).readlink()}")
            elif not layout.is_inside(entry.name):
                findings.append(f"{quote(path)}: has a name that a manifest cannot contain")
            elif entry.is_dir(follow_symlinks=False):
                yield from _walk(Path(entry.path), path + "/", hidden, findings)
            elif stat.S_ISREG(entry.stat(follow_symlinks=False).st_mode):
                yield path
            else:
                findings.append(f"{path}: is not a regular file")


def file_of(folder: Path, path: str) -> File:
    """One file of `folder`, with its size and hash."""
    return File(path=path, size=(folder / path).stat().st_size, sha256=sha256_of(folder / path))


def files_of(folder: Path, *, hidden: bool = True) -> tuple[File, ...]:
    """Every file below `folder` with its size and hash, sorted by path.

    Raises IntegrityError for symlinks and other files that are not regular.
    """
    return tuple(file_of(folder, path) for path in paths_of(folder, hidden=hidden))


def check_files(
    folder: Path,
    files: Iterable[File],
    *,
    label: str | None = None,
    allow: Collection[str] = (),
    hashes: bool = True,
    hashed: Collection[str] = (),
) -> None:
    """Compare a folder with a list of files: presence, size, sha256 (unless `hashes=False`), and no other files.

    `label` begins the message (default: the folder). Paths in `allow` may exist without being listed. Files in `hashed`
    have a known hash, so only their presence and size are checked. Files are hashed with one thread per CPU. Raises
    IntegrityError that lists each mismatch.
    """
    listed = {file.path: file for file in files}
    threads = ThreadPoolExecutor(max_workers=len(os.sched_getaffinity(0)))
    size = sum(file.size for file in listed.values() if hashes and file.path not in hashed)
    with threads, progress.telling(f"{label or folder}: hashing", size):
        checks = threads.map(
            lambda file: _check_file(folder, file, hashes and file.path not in hashed), listed.values()
        )
        findings = [finding for finding in checks if finding]
    findings += [f"{path}: not listed" for path in paths_of(folder) if path not in listed and path not in allow]
    if findings:
        raise IntegrityError(f"{label or folder}: not the files that were promised:\n  " + "\n  ".join(findings))


def _check_file(folder: Path, file: File, hashes: bool) -> str | None:
    path = folder / file.path
    if not path.is_file():
        return f"{file.path}: missing"
    if (size := path.stat().st_size) != file.size:
        return f"{file.path}: expected {file.size:,} bytes, found {size:,}"
    if hashes and (found := sha256_of(path)) != file.sha256:
        return f"{file.path}: expected sha256 {file.sha256}, found {found}"
    return None


@contextmanager
def disk_full_as(what: str, folder: Path, error: type[PrebakeError] = SourceError) -> Iterator[None]:
    """Turn a full disk or quota inside the block into one clear error; other OS errors pass through."""
    try:
        yield
    except OSError as found:
        if found.errno not in FULL:
            raise
        raise error(
            f"{what}: no space left while writing below {found.filename or folder}: free some space, "
            "run `prebake cache prune`, or put the cache elsewhere with --cache or PREBAKE_CACHE"
        ) from found


def unwritten(what: object, error: OSError) -> PrebakeError:
    """The error about a file that could not be written: the disk is full, or it is the wrong place."""
    if error.errno in FULL:
        return PrebakeError(f"{what}: cannot be written: {reason(error)}: free some space, or name another place")
    return ConfigError(f"{what}: cannot be written: {reason(error)}")
