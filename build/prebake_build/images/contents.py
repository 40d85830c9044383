"""What is in an image: the files of each layer, and those that are left when the layers lie on each other.

The layers are untrusted: they are read as a stream, nothing is extracted, and what is kept of a file is bounded.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import posixpath
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal, cast

from prebake.documents.messages import quote, reason
from prebake.errors import ConfigError, DocumentError
from prebake_build.images.oci_layout import Image

SMALL = 256 << 10
"""Bytes up to which a file's text is looked at."""
_CHUNK = 1 << 20
_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_DAMAGED = (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, ValueError, OverflowError)
_MOST_LINKS = 40
"""Symlinks that are followed, as in the kernel."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """One file of one layer."""

    path: str
    """Relative to the image's root."""
    layer: int
    kind: str
    """`file`, `folder`, `link`, `hard link`, `other`."""
    size: int
    mode: int
    uid: int
    gid: int
    target: str = ""
    """Of a link, as it is written."""
    head: bytes = b""
    """The first 16 bytes of a large file."""
    digest: str = ""
    """`sha256:…` of a large file."""
    text: bytes = b""
    """The contents of a file that the caller wanted to see."""


@dataclass(slots=True)
class Contents:
    """All layers of an image."""

    layers: list[list[Entry]] = field(default_factory=list)
    files: dict[str, Entry] = field(default_factory=dict)
    """Path → what a container sees there."""
    removed: list[tuple[Entry, int]] = field(default_factory=list)
    """Files that a later layer, with this number, deletes or replaces."""

    def resolve(self, path: str) -> Entry | None:
        """What a path leads to when links are followed; None if nothing is there."""
        for _ in range(_MOST_LINKS):
            found = self.files.get(path)
            if found is None or found.kind not in ("link", "hard link"):
                return found
            path = found.target if found.kind == "hard link" else _join(path, found.target)
        return None


def read_contents(
    image: Image, *, large: int | None, wanted: Callable[[str], bool], keep: int = SMALL
) -> Contents:  # fmt: skip
    """Read the image's layers. Files of `large` bytes or more are hashed; of those up to `keep` bytes, the text is kept
    if `wanted` says so about their path. Raises DocumentError for a layer that is no tar file, and IntegrityError."""
    hashed = sys.maxsize if large is None else large
    contents = Contents()
    for number, descriptor in enumerate(image.manifest.layers):
        with opened_layer(image.layer(number), descriptor.media_type) as archive:
            entries = [_entry(archive, member, number, hashed, wanted, keep) for member in archive]
        contents.layers.append(entries)
        _lay(contents, entries, number)
    return contents


@contextmanager
def opened_layer(path: Path, media_type: str) -> Iterator[tarfile.TarFile]:
    """A layer's tar file, decompressed as its media type says; a compressed one can only be read forwards.

    Raises DocumentError for a layer that is no such file or is damaged, also while it is read inside the block.
    """
    try:
        with _opened(path, media_type) as archive:
            yield archive
    except _DAMAGED as error:
        raise DocumentError(f"{path}: this layer cannot be read: {reason(error)}") from error
    except Exception as error:
        if type(error).__name__ == "ZstdError":  # of whichever package is installed
            raise DocumentError(f"{path}: this layer cannot be read: {reason(error)}") from error
        raise


@contextmanager
def _opened(path: Path, media_type: str) -> Iterator[tarfile.TarFile]:
    mode: Literal["r:", "r|"] = "r:"
    with ExitStack() as opened:
        stream: IO[bytes] = opened.enter_context(path.open("rb"))
        if media_type.endswith(("+zstd", ".zstd")):
            stream, mode = opened.enter_context(_zstd(stream)), "r|"
        elif media_type.endswith("gzip"):
            stream, mode = cast(IO[bytes], opened.enter_context(gzip.GzipFile(fileobj=stream))), "r|"
        # names are UTF-8; bytes that are not are escaped, because they could not be printed
        names: dict[str, Any] = {"encoding": "utf-8", "errors": "backslashreplace"}
        yield opened.enter_context(tarfile.open(fileobj=stream, mode=mode, bufsize=_CHUNK, **names))


@contextmanager
def _zstd(raw: IO[bytes]) -> Iterator[IO[bytes]]:
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                "this image has layers compressed with zstd: install the package zstandard, or use Python 3.14"
            ) from None
        with zstandard.ZstdDecompressor().stream_reader(raw) as stream:
            yield cast(IO[bytes], stream)
        return
    with zstd.ZstdFile(raw) as stream:
        yield cast(IO[bytes], stream)


def _entry(
    archive: tarfile.TarFile, member: tarfile.TarInfo, layer: int, large: int, wanted: Callable[[str], bool], keep: int
) -> Entry:
    path = inside(member.name)
    if member.issparse():  # a few bytes of it may stand for exabytes, and no builder of images writes such entries
        raise DocumentError(f"layer {layer}: {quote('/' + path)}: is a sparse file: write the layer without them")
    head, digest, text = b"", "", b""
    if member.isreg() and 0 < member.size <= keep and wanted(path) and (file := archive.extractfile(member)):
        text = file.read()
        file = io.BytesIO(text)
    else:
        file = archive.extractfile(member) if member.isreg() and member.size >= large else None
    if file and member.size >= large:
        head, digest = _hash(file)
    return Entry(
        path=path, layer=layer, kind=_kind(member), size=member.size if member.isreg() else 0, mode=member.mode,
        uid=member.uid, gid=member.gid, head=head, digest=digest, text=text,
        target=inside(member.linkname) if member.islnk() else member.linkname,
    )  # fmt: skip


def inside(name: str) -> str:
    """A tar entry's name, or the target of a hard link, as a path below the image's root."""
    return posixpath.normpath("/" + name).lstrip("/")


def _kind(member: tarfile.TarInfo) -> str:
    if member.isreg():
        return "file"
    if member.isdir():
        return "folder"
    if member.issym():
        return "link"
    return "hard link" if member.islnk() else "other"


def _hash(file: IO[bytes]) -> tuple[bytes, str]:
    digest, head = hashlib.sha256(), b""
    while chunk := file.read(_CHUNK):
        head = head or chunk[:16]
        digest.update(chunk)
    return head, "sha256:" + digest.hexdigest()


def _lay(contents: Contents, entries: list[Entry], number: int) -> None:
    """Lay one layer on those below: whiteouts first, as they concern lower layers alone."""
    for entry in entries:
        folder, name = posixpath.split(entry.path)
        if name == _OPAQUE:
            _remove_below(contents, folder, number)
        elif name.startswith(_WHITEOUT):
            _remove(contents, posixpath.join(folder, name[len(_WHITEOUT) :]), number)
    for entry in entries:
        if posixpath.basename(entry.path).startswith(_WHITEOUT):
            continue
        old = contents.files.get(entry.path)
        if old is not None and old.layer != number:
            contents.removed.append((old, number))
            if old.kind == "folder" and entry.kind != "folder":
                _remove_below(contents, entry.path, number)
        contents.files[entry.path] = entry


def _remove(contents: Contents, path: str, number: int) -> None:
    old = contents.files.pop(path, None)
    if old is not None:
        contents.removed.append((old, number))
    if old is None or old.kind == "folder":  # layers need no entries for the folders of their files
        _remove_below(contents, path, number)


def _remove_below(contents: Contents, folder: str, number: int) -> None:
    prefix = f"{folder}/" if folder else ""
    for path in [path for path in contents.files if path.startswith(prefix)]:
        contents.removed.append((contents.files.pop(path), number))


def _join(path: str, target: str) -> str:
    """Where a symlink at `path` leads."""
    return posixpath.normpath(posixpath.join("/", posixpath.dirname(path), target)).lstrip("/")
