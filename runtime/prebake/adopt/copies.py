"""Copies of a repository's files in a folder of the application's: `local_dir` of huggingface_hub's downloads.

What was copied is remembered, so that a load of such a folder or file later in the process is one of the repository:
`AutoModel.from_pretrained("weights")` after `snapshot_download("org/name", local_dir="weights")`. A file that changed
since, and a folder with other files beside, are the application's own.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.adopt import redirect
from prebake.baked import hub

if TYPE_CHECKING:
    from prebake.baked.model import BakedModel

_METADATA = Path(".cache", "huggingface", "download")
"""Below a `local_dir`: huggingface_hub's notes, `FILE.metadata`, whose first line is the commit."""
_ENDING = ".metadata"
SAFETENSORS = ".safetensors"


@dataclass(frozen=True, slots=True)
class _Copy:
    uri: str
    identity: tuple[int, int, int]


_copies: dict[str, dict[str, _Copy]] = {}
"""Folder → path in it → its copy."""
KEPT = 100
"""Folders remembered, the last ones. A service may download into a new folder for each request."""
_whole: set[str] = set()
"""Folders that have all files of their repository."""


def note(folder: Path, uri: str, files: Iterable[str], *, whole: bool = False) -> None:
    """Remember files of the folder as those of a repository, whose source with its commit is `uri`."""
    place = os.path.realpath(folder)
    known = _copies.setdefault(place, {})
    for file in files:
        with suppress(OSError):
            known[file] = _Copy(uri, _identity(os.path.join(place, file)))  # noqa: PTH118
    if whole:
        _whole.add(place)
    for old in list(_copies)[:-KEPT]:
        _copies.pop(old, None)
        _whole.discard(old)


def note_downloaded(folder: Path, uri: str) -> str:
    """Remember what huggingface_hub has downloaded into the folder; returns the source with the commit, if it is
    known."""
    commits: dict[str, str] = {}
    for path in (folder / _METADATA).rglob(f"*{_ENDING}"):
        with suppress(OSError, ValueError):
            commit = path.read_text(encoding="utf-8").partition("\n")[0].strip()
            if hub.COMMIT.fullmatch(commit):
                commits[path.relative_to(folder / _METADATA).as_posix().removesuffix(_ENDING)] = commit
    found = set(commits.values())
    if len(found) == 1:
        uri = f"{hub.URI}{hub.split(uri)[0]}@{found.pop()}"
    note(folder, uri, commits, whole=True)
    return uri


def repository(folder: str) -> str | None:
    """The source of a folder that is the whole copy of a repository, and nothing more; else None."""
    place = os.path.realpath(folder)
    known = _copies.get(place, {}).copy()
    if not known or place not in _whole or len({copy.uri for copy in known.values()}) > 1:
        return None
    if not all(_unchanged(place, file, copy) for file, copy in known.items()):
        return None
    for parent, folders, files in os.walk(place):
        if parent == place:
            folders[:] = [name for name in folders if name != ".cache"]
        if any(os.path.relpath(os.path.join(parent, name), place) not in known for name in files):  # noqa: PTH118
            return None
    return next(iter(known.values())).uri


def file_of(path: Path) -> tuple[str, str] | None:
    """Source and path, in the repository, of a file that is a copy; else None."""
    real = os.path.realpath(path)
    for place, known in list(_copies.items()):  # another thread may add some
        name = os.path.relpath(real, place)
        if (copy := known.get(name)) is not None and _unchanged(place, name, copy):
            return copy.uri, name
    return None


def copy_file(source: Path, place: Path) -> Path:
    """Copy the file, whole or not at all; a link to it stays. Raises OSError."""
    if place.exists() and place.samefile(source):
        return place
    return _replaced(place, lambda partial: shutil.copyfile(source, partial))


def can_write(baked: BakedModel, file: str) -> bool:
    """Whether a copy of the file that the model was baked from can be written: baked shards are not one file again."""
    return not file.endswith(SAFETENSORS) or len(baked.weights) == 1


def write_file(baked: BakedModel, file: str, place: Path) -> Path:
    """Write the single file that the model was baked from, with the same content and in the same format.

    Raises OSError, and what loading the baked model raises.
    """
    if file.endswith(SAFETENSORS):
        return copy_file(baked.weights[0], place)
    import torch

    module: Any = redirect.module_of(baked)
    return _replaced(place, lambda partial: torch.save(module.object(), partial))


def _replaced(place: Path, write: Callable[[Path], object]) -> Path:
    place.parent.mkdir(parents=True, exist_ok=True)
    partial = place.with_name(f".{place.name}.{uuid.uuid4().hex}")
    try:
        write(partial)
        partial.replace(place)
    finally:
        partial.unlink(missing_ok=True)
    return place


def _unchanged(place: str, file: str, copy: _Copy) -> bool:
    try:
        return _identity(os.path.join(place, file)) == copy.identity  # noqa: PTH118
    except OSError:
        return False


def _identity(path: str) -> tuple[int, int, int]:
    status = os.stat(path)  # noqa: PTH116
    return status.st_ino, status.st_size, status.st_mtime_ns
