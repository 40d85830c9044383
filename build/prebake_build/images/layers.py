"""The image layer of a baked model: a tar file of its folder at its place in the image.

The entries are those that `docker buildx bake` writes for `COPY --link` of the folder, in the same order, so the layer
has the same digest however it was built.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from prebake.baked import layout
from prebake.baked.model import BakedModel
from prebake.documents.messages import reason
from prebake.errors import ConfigError, IntegrityError
from prebake_build.files.digest import paths_of
from prebake_build.images import tar
from prebake_build.images.hashing import HashingWriter

COMPRESSIONS = ("uncompressed", "zstd")
ZSTD_LEVEL = 3
"""zstd's own default: higher levels take minutes on weights and save a few per cent more."""


@dataclass(frozen=True, kw_only=True, slots=True)
class WrittenLayer:
    """A layer in a file."""

    digest: str
    """`sha256:…` of the file."""
    diff_id: str
    """`sha256:…` of the tar file, the same as `digest` unless it is compressed."""
    size: int
    """Bytes of the file."""


def write_layer(
    baked: BakedModel, path: Path, *, root: str = layout.DEFAULT_ROOT, compression: str = "uncompressed",
    align: bool = False,
) -> WrittenLayer:  # fmt: skip
    """Write the model's folder as a layer that puts it below `root` in the image; reads each file once.

    `align` starts the data of the safetensors files at multiples of a page in the tar file, so that they can be mapped
    without being extracted; the layer's digest is not BuildKit's then. Raises IntegrityError if the folder is not what
    its manifest says, as far as sizes and names tell, and OSError.
    """
    files = _files(baked)
    with path.open("xb", buffering=0) as raw, HashingWriter(lambda data: _write_all(raw, data)) as outer:
        if compression == "uncompressed":
            _write_entries(baked, files, root, align, outer)
            written = outer
        else:
            with _compressor(outer) as write, HashingWriter(write) as written:
                _write_entries(baked, files, root, align, written)
    return WrittenLayer(digest=outer.digest, diff_id=written.digest, size=outer.size)


def write_file_layer(source: Path, path: Path, *, root: str = layout.DEFAULT_ROOT) -> WrittenLayer:
    """Write one file as a layer that puts it into `root` in the image. Raises IntegrityError and OSError."""
    folder = root.strip("/")
    size = source.stat().st_size
    with path.open("xb", buffering=0) as raw, HashingWriter(lambda data: _write_all(raw, data)) as written:
        for parent in reversed([PurePosixPath(folder), *PurePosixPath(folder).parents][:-1]):
            written.write(tar.folder_entry(str(parent)))
        written.write(tar.file_entry(f"{folder}/{source.name}", size))
        with _regular(source) as file:
            written.copy(file, size, str(source))
        written.write(tar.padding(size) + tar.END)
    return WrittenLayer(digest=written.digest, diff_id=written.digest, size=written.size)


def layer_digest(baked: BakedModel, *, root: str = layout.DEFAULT_ROOT) -> str:
    """`sha256:…` of the model's uncompressed layer, which is not written. Raises IntegrityError as `write_layer`."""
    with HashingWriter(len) as written:
        _write_entries(baked, _files(baked), root, False, written)
    return written.digest


def _files(baked: BakedModel) -> dict[str, int]:
    """Path in the folder → size, in the order of a walk: each folder's names sorted, its own entry first."""
    baked.manifest.check_sizes(baked.folder)
    found = set(paths_of(baked.folder))
    expected = {file.path: file.size for file in baked.manifest.files}
    if unlisted := sorted(found - expected.keys() - {layout.MANIFEST}):
        raise IntegrityError(f"{baked.folder}: not in its manifest: {', '.join(unlisted)}: remove it, or bake again")
    expected[layout.MANIFEST] = (baked.folder / layout.MANIFEST).stat().st_size
    return dict(sorted(expected.items(), key=lambda item: item[0].split("/")))


def _write_entries(baked: BakedModel, files: dict[str, int], root: str, align: bool, written: HashingWriter) -> None:
    base = PurePosixPath(root.strip("/")) / baked.name
    folders: set[PurePosixPath] = set()
    for path, size in files.items():
        place = base / path
        for folder in reversed(place.parents[:-1]):
            if folder not in folders:
                folders.add(folder)
                written.write(tar.folder_entry(str(folder)))
        page = layout.PAGE if align and path.endswith(".safetensors") else tar.BLOCK
        written.write(tar.file_entry(str(place), size, position=written.size, align=page))
        with _regular(baked.folder / path) as file:
            written.copy(file, size, str(baked.folder / path))
        written.write(tar.padding(size))
    written.write(tar.END)


@contextmanager
def _regular(path: Path) -> Iterator[BinaryIO]:
    """The opened file. Raises IntegrityError for a symlink or anything else that is not a regular file."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read: {reason(error)}") from error
    with open(handle, "rb", buffering=0) as file:  # noqa: PTH123
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise IntegrityError(f"{path}: is not a regular file")
        yield cast(BinaryIO, file)


def _write_all(file: BinaryIO, data: bytes | memoryview) -> None:
    view = memoryview(data)
    while view:
        view = view[file.write(view) :]


@contextmanager
def _compressor(outer: HashingWriter) -> Iterator[Callable[[bytes | memoryview], object]]:
    """A function that compresses with zstd. The same version of zstd gives the same bytes."""
    try:
        from compression import zstd  # type: ignore[import-not-found, unused-ignore]  # Python 3.14
    except ImportError:
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                "--compression zstd: needs the package zstandard (pip install zstandard) or Python 3.14"
            ) from None
        compressor = zstandard.ZstdCompressor(level=ZSTD_LEVEL, write_checksum=True).compressobj()
    else:
        compressor = zstd.ZstdCompressor(level=ZSTD_LEVEL)

    def write(data: bytes | memoryview) -> None:
        if packed := compressor.compress(data):
            outer.write(packed)

    yield write
    if rest := compressor.flush():
        outer.write(rest)
