"""Unpacks untrusted archives into a folder, without writing outside it.

Every member is checked before the first byte is written. These are errors, never skipped: absolute paths, `..`, links,
devices, encrypted members, duplicate paths, names that are too long or too deep, and archives with an extreme
compression ratio. An archive's size and the limits below bound the cost of checking it. (`tarfile`'s own filters came
after Python 3.10.)
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
"""Limit of the compression ratio: weights barely compress. Does not apply below FREE_SIZE, because dummy weights are
mostly zeros."""
FREE_SIZE = 1 << 30
"""Unpacked bytes up to which any ratio is allowed."""
MAX_MEMBERS = 10_000
"""A compressed tar can contain a thousand times as many headers as its size suggests."""
MAX_NAME, MAX_DEPTH = 512, 32
"""Limits of a member's path: characters, and folders. All folders of all members are kept in memory: at most 80 MB."""
MAX_TAR_HEADER = 64 << 10
"""Limit in bytes for headers with long names, which `tarfile` reads into memory regardless of their size."""
MAX_LISTED = 20
"""Maximum number of findings in a message."""

_DAMAGE = (
    zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, NotImplementedError, RecursionError
)  # fmt: skip


_TAR_HEADERS = (
    tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    path: str
    size: int
    folder: bool = False
    """Folders are only created for the files in them."""
    refusal: str | None = None
    """Why it must not be unpacked, or None."""


class _TarInfo(tarfile.TarInfo):
    """Limits extended headers, which `tarfile` reads into memory: a small archive may declare one of gigabytes."""

    def _proc_member(self, opened: tarfile.TarFile) -> tarfile.TarInfo:
        # Its comment in `tarfile`: "can be overridden in a subclass to add custom _proc_*() methods".
        if self.type in _TAR_HEADERS and self.size > MAX_TAR_HEADER:
            raise tarfile.ReadError(f"has a header of {self.size:,} bytes, more than {MAX_TAR_HEADER:,}")
        return super()._proc_member(opened)  # type: ignore[misc, no-any-return]


def is_archive(name: str) -> bool:
    """Whether `unpack` can read a file of this name."""
    return name.lower().endswith(SUFFIXES)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a .zip, .tar, .tar.gz or .tgz into `folder`, which exists and is empty.

    Raises SourceError that lists each refused member, or if the archive is damaged.
    """
    with _reading(archive):
        if archive.name.lower().endswith(".zip"):
            with zipfile.ZipFile(archive) as opened:
                for member in _checked(archive, _zip_members(opened)):
                    with opened.open(member.path) as content:
                        _write(content, folder / member.path)
        else:
            with tarfile.open(archive, "r:*", tarinfo=_TarInfo) as opened_tar:
                for member in _checked(archive, _tar_members(opened_tar)):
                    content_tar = opened_tar.extractfile(member.path)
                    if content_tar is not None:
                        with content_tar:
                            _write(content_tar, folder / member.path)


def check_member(zip_path: Path, member: str, md5: str | None) -> None:
    """Read one member of a zip without writing it. Raises like `extract`."""
    with _reading(zip_path), zipfile.ZipFile(zip_path) as opened:
        _find(zip_path, opened, member)
        with opened.open(member) as content:
            _check_md5(zip_path, member, _write(content, None), md5)


def extract(zip_path: Path, member: str, folder: Path, md5: str | None) -> Path:
    """Unpack one member of a zip into `folder` and return its path; checks `md5` (hexadecimal) unless it is None.

    Raises SourceError if the zip is damaged, unsafe, or lacks the member (the message lists the existing ones), and
    IntegrityError if the md5 differs; then the file is removed.
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
        raise SourceError(f"{archive.name}: is damaged, or not an archive of this type: {error}") from error


def _zip_members(opened: zipfile.ZipFile) -> Iterator[_Member]:
    for info in opened.infolist():
        mode = info.external_attr >> 16
        refusal = None
        if stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
            refusal = "is a link or device"
        elif info.flag_bits & 1:
            refusal = "is encrypted"
        yield _Member(path=info.filename, size=info.file_size, folder=info.is_dir(), refusal=refusal)


def _tar_members(opened: tarfile.TarFile) -> Iterator[_Member]:
    for info in opened:
        refusal = None if info.isreg() or info.isdir() else "is a link or device"
        yield _Member(path=info.name, size=info.size, folder=info.isdir(), refusal=refusal)


def _checked(archive: Path, members: Iterable[_Member]) -> list[_Member]:
    """The members that are files. Raises SourceError unless all members are safe."""
    found: list[_Member] = []
    findings: list[str] = []
    files: set[str] = set()
    folders: set[str] = set()
    total, limit = 0, max(FREE_SIZE, MAX_RATIO * archive.stat().st_size)
    for number, member in enumerate(members):
        if number == MAX_MEMBERS:
            findings.append(f"it has more than {MAX_MEMBERS:,} members")
            break
        # `tar -C folder .` names its members ./NAME; the folder itself is "."
        path = member.path.removeprefix("./")
        if refusal := _refusal(member, path):
            findings.append(f"{quote(member.path)}: {refusal}")
            continue
        if member.folder:
            continue
        parents = {path[:end] for end, character in enumerate(path) if character == "/"}
        if path in files or path in folders or parents & files:
            findings.append(f"{quote(member.path)}: is a duplicate")
        files.add(path)
        folders |= parents
        found.append(member)
        total += member.size
        if total > limit:
            findings.append(f"it would unpack to {total:,} bytes, more than the {limit:,} that its size allows")
            break
    if findings:
        raise SourceError(f"{archive.name}: refused, nothing was unpacked:\n  " + "\n  ".join(_first(findings)))
    return found


def _refusal(member: _Member, path: str) -> str | None:
    """Why the member is refused, independently of other members. Checks the path's length before its parts."""
    if len(path) > MAX_NAME:
        return f"has a name of {len(path):,} characters, more than {MAX_NAME}"
    if (depth := path.count("/")) > MAX_DEPTH:
        return f"is {depth} folders deep, more than {MAX_DEPTH}"
    if not layout.is_inside(path.rstrip("/") if member.folder else path) and not (member.folder and path == "."):
        return "leaves the folder"
    return member.refusal


def _first(lines: list[str]) -> list[str]:
    more = len(lines) - MAX_LISTED
    return lines if more <= 0 else [*lines[:MAX_LISTED], f"and {more:,} more"]


def _find(zip_path: Path, opened: zipfile.ZipFile, member: str) -> None:
    names = [found.path for found in _checked(zip_path, _zip_members(opened))]
    if member not in names:
        listed = ", ".join(_first(list(map(quote, names)))) or "none at all"
        raise SourceError(f"{zip_path.name}: has no member {quote(member)} (it has {listed})")


def _check_md5(zip_path: Path, member: str, found: str, expected: str | None) -> None:
    if expected is not None and found != expected:
        raise IntegrityError(f"{zip_path.name}: {member}: expected md5 {expected}, found {found}")


def _write(content: IO[bytes], target: Path | None) -> str:
    """Copy to a new file (or nowhere) and return the md5."""
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
