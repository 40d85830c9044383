"""The image layers of a baked model: tar files of its folder, and of its view, at their places in the image.

Each shard of a large model has a layer of its own; everything else is in one layer.

The entries are those that `docker buildx bake` writes for `COPY --link` of the folder, in the same order, so the layer
has the same digest however it was built.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from prebake.baked import hub, layout
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Item:
    """One file or link of a layer."""

    path: str
    """In the image, without a leading slash."""
    size: int = 0
    source: Path | None = None
    """The file that has the contents."""
    data: bytes = b""
    """The contents where there is no such file."""
    target: str = ""
    """What a symlink holds."""


def write_layer(
    baked: BakedModel, path: Path, *, root: str = layout.DEFAULT_ROOT, compression: str = "uncompressed",
    align: bool = False,
) -> WrittenLayer:  # fmt: skip
    """Write the model without its shards as a layer that puts it below `root` in the image; reads each file once.

    A model from the hub has its view beside it (`prebake.baked.hub`). `align` starts the data of the safetensors files
    at multiples of a page in the tar file, so that they can be mapped without being extracted; the layer's digest is
    not BuildKit's then. Raises IntegrityError if the folder is not what its manifest says, as far as sizes and names
    tell, and OSError.
    """
    return _write(model_items(baked, root), path, compression, align)


def write_shard_layer(
    baked: BakedModel, shard: str, path: Path, *, root: str = layout.DEFAULT_ROOT, compression: str = "uncompressed",
    align: bool = False,
) -> WrittenLayer:  # fmt: skip
    """Write one of the model's shards as a layer, as `write_layer` writes the rest. Raises the same."""
    baked.manifest.check_sizes(baked.folder)
    return _write([_shard_item(baked, shard, root)], path, compression, align)


def write_file_layer(source: Path, path: Path, *, root: str = layout.DEFAULT_ROOT) -> WrittenLayer:
    """Write one file as a layer that puts it into `root` in the image. Raises IntegrityError and OSError."""
    item = Item(path=f"{root.strip('/')}/{source.name}", size=source.stat().st_size, source=source)
    return _write([item], path, "uncompressed", False)


def layer_digest(baked: BakedModel, *, root: str = layout.DEFAULT_ROOT) -> str:
    """`sha256:…` of the model's uncompressed layer, which is not written. Raises IntegrityError as `write_layer`."""
    return _digest(model_items(baked, root))


def shard_digests(baked: BakedModel, *, root: str = layout.DEFAULT_ROOT) -> tuple[str, ...]:
    """`sha256:…` of the layer of each shard, in order; none for a model that is not split."""
    return tuple(_digest([_shard_item(baked, shard, root)]) for shard in baked.shards)


def _digest(items: Sequence[Item]) -> str:
    with HashingWriter(len) as written:
        _write_items(items, False, written)
    return written.digest


def _shard_item(baked: BakedModel, shard: str, root: str) -> Item:
    (size,) = (file.size for file in baked.manifest.files if file.path == shard)
    return Item(path=f"{root.strip('/')}/{baked.name}/{shard}", size=size, source=baked.folder / shard)


def model_items(baked: BakedModel, root: str) -> list[Item]:
    """The files of a model but its shards, and the links of its view, in the order of a walk: each folder's names
    sorted.

    Raises IntegrityError if the folder is not what its manifest says.
    """
    baked.manifest.check_sizes(baked.folder)
    sizes = {file.path: file.size for file in baked.manifest.files}
    if unlisted := sorted(set(paths_of(baked.folder)) - sizes.keys() - {layout.MANIFEST}):
        raise IntegrityError(f"{baked.folder}: not in its manifest: {', '.join(unlisted)}: remove it, or bake again")
    sizes[layout.MANIFEST] = (baked.folder / layout.MANIFEST).stat().st_size
    base = root.strip("/")
    items = [Item(path=f"{base}/{baked.name}/{path}", size=size, source=baked.folder / path)
             for path, size in sizes.items() if path not in baked.shards]  # fmt: skip
    view = hub.view_of([baked])
    for path, target in view.links.items():
        items.append(Item(path=f"{base}/{hub.FOLDER}/{path}", target=hub.link_target(path, "..", target)))
    for path, commit in view.refs.items():
        items.append(Item(path=f"{base}/{hub.FOLDER}/{path}", size=len(commit), data=commit.encode("ascii")))
    return sorted(items, key=lambda item: item.path.split("/"))


def _write(items: Sequence[Item], path: Path, compression: str, align: bool) -> WrittenLayer:
    with path.open("xb", buffering=0) as raw, HashingWriter(lambda data: _write_all(raw, data)) as outer:
        if compression == "uncompressed":
            _write_items(items, align, outer)
            written = outer
        else:
            with _compressor(outer) as write, HashingWriter(write) as written:
                _write_items(items, align, written)
    return WrittenLayer(digest=outer.digest, diff_id=written.digest, size=outer.size)


def _write_items(items: Sequence[Item], align: bool, written: HashingWriter) -> None:
    folders: set[PurePosixPath] = set()
    for item in items:
        for folder in reversed(PurePosixPath(item.path).parents[:-1]):
            if folder not in folders:
                folders.add(folder)
                written.write(tar.folder_entry(str(folder)))
        if item.target:
            written.write(tar.link_entry(item.path, item.target))
            continue
        page = layout.PAGE if align and item.path.endswith(".safetensors") else tar.BLOCK
        written.write(tar.file_entry(item.path, item.size, position=written.size, align=page))
        if item.source is None:
            written.write(item.data)
        else:
            with _regular(item.source) as file:
                written.copy(file, item.size, str(item.source))
        written.write(tar.padding(item.size))
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
