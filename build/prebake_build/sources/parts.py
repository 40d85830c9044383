"""Unfinished downloads: kept by the cache, so that the next attempt goes on where the last one ended.

A source writes into a folder that is removed when fetching fails. So a download grows in another folder, which the
cache chooses (`keeping`) and removes once the checkpoint is complete. Without one, an unfinished download is lost.

::

    0123456789abcdef.parts.tmp/      one folder for each key of the cache
    ├── 89abcdef01234567.part        bytes so far; the name is a digest of what is downloaded and of its version
    └── 89abcdef01234567.done        for downloads in pieces: the numbers of the complete ones, one a line
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from prebake_build.files.digest import FULL

_folder: ContextVar[Path | None] = ContextVar("parts", default=None)


@contextmanager
def keeping(folder: Path) -> Iterator[None]:
    """Downloads inside the block grow in `folder`, which is created when needed.

    It is removed if the block succeeds, or if the disk is full; after other errors it stays for the next attempt.
    """
    token = _folder.set(folder)
    try:
        yield
    except OSError as error:
        if error.errno in FULL:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        _folder.reset(token)
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()


def folder_or(otherwise: Path) -> Path:
    """Where unfinished downloads grow: the kept folder, created if necessary, or `otherwise`.

    Threads see the kept folder only with a copy of the context, as `pieces.in_parallel` gives them.
    """
    folder = _folder.get()
    if folder is None:
        return otherwise
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def name_of(*what: object) -> str:
    """The file name for a download, from what identifies it and its version (an ETag, a size)."""
    return hashlib.sha256("\n".join(map(str, what)).encode()).hexdigest()[:16]
