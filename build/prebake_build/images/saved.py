"""An engine's image as an OCI layout in a temporary folder, as `docker save` writes it."""

from __future__ import annotations

import io
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prebake.documents.messages import reason
from prebake.errors import PrebakeError
from prebake_build.files import progress
from prebake_build.files.digest import FULL, unwritten
from prebake_build.images.oci_layout import INDEX, MARKER, Image, Layout, is_layout

_KEPT = re.compile(rf"(?:\./)?(?:{MARKER}|{re.escape(INDEX)}|blobs/sha256/[0-9a-f]{{64}})")
_CHUNK = 1 << 20


@contextmanager
def saved_image(client: Any, name: str) -> Iterator[Image]:
    """The image with this name, for the platform that the engine has. It takes its size on disk below TMPDIR.

    Raises PrebakeError if there is no such image, or the engine is too old to save one as an OCI layout.
    """
    import docker

    with tempfile.TemporaryDirectory(prefix="prebake-image-") as folder:
        try:
            found = client.images.get(name)
            stream = _Stream(found.save(chunk_size=_CHUNK))
            told = progress.telling(f"{name}: copying it from the engine", found.attrs.get("Size"))
            with told, tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive:
                _extract(archive, Path(folder))
        except docker.errors.ImageNotFound:
            raise PrebakeError(
                f"{name}: there is no such image here, and no such folder: build it, or pull it"
            ) from None
        except docker.errors.APIError as error:
            raise PrebakeError(f"{name}: the engine refuses this image: {error.explanation or error}") from error
        except (tarfile.TarError, OSError) as error:
            if isinstance(error, OSError) and error.errno in FULL:
                raise unwritten(f"{name}: its copy in {folder} (TMPDIR)", error) from error
            raise PrebakeError(f"{name}: the engine's copy of it cannot be read: {reason(error)}") from error
        if not is_layout(Path(folder)):
            raise PrebakeError(
                f"{name}: this engine does not save images as OCI layouts (Docker 25 does): "
                "build with --output type=oci,dest=DIR,tar=false and check that folder"
            )
        yield Layout.open(Path(folder)).image()


class _Stream(io.RawIOBase):
    """A readable file of an iterator's chunks."""

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._rest:
            try:
                self._rest = next(self._chunks)
            except StopIteration:
                return 0
        count = min(len(buffer), len(self._rest))
        buffer[:count], self._rest = self._rest[:count], self._rest[count:]
        return count


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Only the layout's own files, whatever else the archive names."""
    (folder / "blobs" / "sha256").mkdir(parents=True)
    for member in archive:
        if member.isreg() and _KEPT.fullmatch(member.name) and (source := archive.extractfile(member)):
            with (folder / member.name).open("wb") as target:
                while chunk := source.read(_CHUNK):
                    target.write(chunk)
                    progress.add(len(chunk))
