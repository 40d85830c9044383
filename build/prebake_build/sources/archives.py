"""Archives from elsewhere, unpacked into a folder that they cannot leave.

Every member is looked at before the first byte is written. Refused, never skipped: absolute paths, `..`,
links, devices, encrypted members, one path twice, and archives that unpack to far more than they are.
(`tarfile`'s own filters came after Python 3.10.)
"""

from __future__ import annotations

import hashlib
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from prebake.baked import layout
from prebake.documents.messages import quote
from prebake.errors import IntegrityError, SourceError
from prebake_build.files.digest import CHUNK, disk_full_as

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz")

MAX_RATIO = 20
"""Weights barely compress. Below FREE_SIZE any ratio passes: dummy weights are mostly zeros."""
FREE_SIZE = 1 << 30
"""Bytes."""

_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    path: str
    size: int
    refusal: str | None = None
    """Why it must not be unpacked."""


def is_archive(name: str) -> bool:
    """Whether a file name is that of an archive that `unpack` reads."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz into `folder`, which exists and is empty.

    Raises SourceError that lists each refused member, or says that the archive is damaged.
    """
    with _reading(archive):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                for member in _checked(archive, _zip_members(opened)):
                    with opened.open(member.path) as content:
                        _write(content, folder / member.path)
        else:
            with tarfile.open(archive, "r:*") as opened_tar:
                for member in _checked(archive, _tar_members(opened_tar)):
                    content_tar = opened_tar.extractfile(member.path)
                    if content_tar is not None:
                        with content_tar:
                            _write(content_tar, folder / member.path)


def check_member(zip_path: Path, member: str, md5: str | None) -> None:
    """Read one member of a zip through, without writing it. Raises as `extract` does."""
    with _reading(zip_path), zipfile.ZipFile(zip_path) as opened:
        _find(zip_path, opened, member)
        with opened.open(member) as content:
            _check_md5(zip_path, member, _write(content, None), md5)


def extract(zip_path: Path, member: str, folder: Path, md5: str | None) -> Path:
    """Unpack one member of a zip into `folder` and give its path; `md5` (hexadecimal) is compared where given.

    Raises SourceError where the zip is damaged, unsafe, or lacks the member (it lists those that are there),
    and IntegrityError where the md5 differs; then nothing is left in `folder`.
    """
    target = folder / member
    with _reading(zip_path), zipfile.ZipFile(zip_path) as opened:
        _find(zip_path, opened, member)
        try:
            with opened.open(member) as content:
                _check_md5(zip_path, member, _write(content, target), md5)
        except BaseException:
            target.unlink(missing_ok=True)
            raise
    return target


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    try:
        with disk_full_as(archive.name, archive.parent):
            yield
    except _DAMAGE as error:
        raise SourceError(f"{archive.name}: is damaged, or no archive of this kind: {error}") from error


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        mode = info.external_attr >> 16
        refusal = None
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            refusal = "is a link or device"
        elif info.flag_bits & 1:
            refusal = "is encrypted"
        if not info.is_dir() or refusal or not layout.is_inside(info.filename.rstrip("/")):
            yield _Member(path=info.filename, size=info.file_size, refusal=refusal)


def _tar_members(opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        # `tar -C folder .` names its members ./NAME; the folder itself is "."
        path = info.name.removeprefix("./")
        refusal = None if info.isreg() or info.isdir() else "is a link or device"
        if info.isdir() and (path == "." or layout.is_inside(path.rstrip("/"))):
            continue
        yield _Member(path=info.name, size=info.size, refusal=refusal)


def _checked(archive: Path, members: Iterable[_Member]) -> list[_Member]:
    """The members, all of them safe together."""
    found: list[_Member] = []
    findings: list[str] = []
    files: set[str] = set()
    folders: set[str] = set()
    total, limit = 0, max(FREE_SIZE, MAX_RATIO * archive.stat().st_size)
    for member in members:
        path = member.path.removeprefix("./")
        parts = path.split("/")
        parents = {"/".join(parts[:i]) for i in range(1, len(parts))}
        if not layout.is_inside(path):
            findings.append(f"{quote(member.path)}: leaves the folder")
        elif member.refusal:
            findings.append(f"{quote(member.path)}: {member.refusal}")
        elif path in files | folders or parents & files:
            findings.append(f"{quote(member.path)}: is there twice")
        files.add(path)
        folders |= parents
        total += member.size
        found.append(member)
    if total > limit:
        findings.append(f"it would unpack to {total:,} bytes, more than the {limit:,} that its size allows")
    if findings:
        raise SourceError(f"{archive.name}: refused, nothing was unpacked:\n  " + "\n  ".join(findings))
    return found


def _find(zip_path: Path, opened: zipfile.ZipFile, member: str) -> None:
    names = [found.path for found in _checked(zip_path, _zip_members(opened))]
    if member not in names:
        listed = ", ".join(map(quote, names)) or "none at all"
        raise SourceError(f"{zip_path.name}: has no member {quote(member)} (it has {listed})")


def _check_md5(zip_path: Path, member: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise IntegrityError(f"{zip_path.name}: {member}: expected md5 {expected}, found {found}")


def _write(content: IO[bytes], target: Path | None) -> str:
    """Copy to a new file (or nowhere) and give the md5."""
    digest = hashlib.md5(usedforsecurity=False)
    if target is None:
        while chunk := content.read(CHUNK):
            digest.update(chunk)
        return digest.hexdigest()
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("xb") as file:
        while chunk := content.read(CHUNK):
            file.write(chunk)
            digest.update(chunk)
    return digest.hexdigest()
