"""Baked models wherever they are: in a folder, or in the layers of an image. Nothing is extracted."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from prebake.baked import layout
from prebake.baked.header import Entry, parse_header
from prebake.baked.manifest import FORMAT, Manifest
from prebake.baked.model import BakedModel, find_models
from prebake.documents.messages import quote
from prebake.documents.table import parse_json
from prebake.errors import ConfigError, IntegrityError
from prebake_build.files import progress
from prebake_build.images.contents import Contents, inside, opened_layer, read_contents
from prebake_build.images.oci_layout import Image

_CHUNK = 1 << 20
LARGEST_MANIFEST = 64 << 20
"""Bytes."""


@dataclass(frozen=True, slots=True)
class PlacedModel:
    """A baked model and how its files are opened."""

    manifest: Manifest
    place: str
    """Where it is, as messages show it."""
    open: Callable[[str], AbstractContextManager[BinaryIO]]
    """Opens one of its files for reading from the beginning. Raises IntegrityError if it is not there."""

    def tensors(self) -> dict[str, Entry]:
        """Every tensor of its weights. Raises TensorFileError."""
        return {name: entry for _, name, entry, _ in self._walk(hashes=False)}

    def tensor_digests(self) -> dict[str, str]:
        """Every tensor's sha256; reads all weights once."""
        weights = self.manifest.weights.all_files
        size = sum(file.size for file in self.manifest.files if file.path in weights)
        with progress.telling(f"{self.place}: reading its tensors", size):
            return {name: digest for _, name, _, digest in self._walk(hashes=True)}

    def _walk(self, *, hashes: bool) -> Iterator[tuple[str, str, Entry, str]]:
        sizes = {file.path: file.size for file in self.manifest.files}
        for path in self.manifest.weights.all_files:
            with self.open(path) as file:
                header = parse_header(file, sizes[path], f"{self.place}/{path}")
                for name, entry in sorted(header.entries.items(), key=lambda item: (item[1].begin, item[1].end)):
                    digest = _hash(file, entry.end - entry.begin, f"{self.place}/{path}") if hashes else ""
                    yield path, name, entry, digest


def _hash(file: BinaryIO, size: int, where: str) -> str:
    digest, left = hashlib.sha256(), size
    while left:
        chunk = file.read(min(left, _CHUNK))
        if not chunk:
            raise IntegrityError(f"{where}: ends {left:,} bytes too early")
        digest.update(chunk)
        progress.add(len(chunk))
        left -= len(chunk)
    return digest.hexdigest()


def models_in_folder(place: Path) -> dict[str, PlacedModel]:
    """Name → model, of a root of baked models or of one model's folder. Raises ConfigError if there is no model."""
    folders = [BakedModel.open(place)] if (place / layout.MANIFEST).exists() else find_models(place)
    return {baked.name: PlacedModel(baked.manifest, str(baked.folder), _file_opener(baked.folder)) for baked in folders}


def _file_opener(folder: Path) -> Callable[[str], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def open_(path: str) -> Iterator[BinaryIO]:
        try:
            with (folder / path).open("rb") as file:
                yield file
        except FileNotFoundError:
            raise IntegrityError(f"{folder / path}: is missing") from None

    return open_


def models_in_image(image: Image, name: str) -> dict[str, PlacedModel]:
    """Name → model, of an image that messages call `name`. Raises ConfigError if there is no model."""
    return models_among(read_contents(image, large=None, wanted=is_manifest, keep=LARGEST_MANIFEST), image, name)


def is_manifest(path: str) -> bool:
    """Whether a path in an image may be that of a manifest."""
    return posixpath.basename(path) == layout.MANIFEST


def models_among(contents: Contents, image: Image, name: str) -> dict[str, PlacedModel]:
    """The same, of the contents with the texts of manifests: the models that a container sees.

    Raises ConfigError if there is none, DocumentError, and IntegrityError if two have one name.
    """
    found: dict[str, PlacedModel] = {}
    for path, entry in contents.files.items():
        if is_manifest(path) and b'"set_digest"' in entry.text:
            text, folder = entry.text.decode("utf-8", "replace"), posixpath.dirname(path)
            manifest = Manifest.from_table(parse_json(text, f"{name}:/{path}", FORMAT, "manifest"))
            place = f"{name}:/{folder}"
            if (other := found.get(manifest.name)) is not None:  # neither may hide the other
                raise IntegrityError(f"{place}: {other.place} is called {quote(manifest.name)} too")
            found[manifest.name] = PlacedModel(manifest, place, _opener(contents, image, place, folder))
    if not found:
        raise ConfigError(f"{name}: this image holds no baked model")
    return dict(sorted(found.items()))


def _opener(
    contents: Contents, image: Image, where: str, folder: str
) -> Callable[[str], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def open_(name: str) -> Iterator[BinaryIO]:
        entry = contents.resolve(f"{folder}/{name}")
        if entry is None or entry.kind != "file":
            raise IntegrityError(f"{where}/{name}: is missing")
        with opened_layer(image.layer(entry.layer), image.manifest.layers[entry.layer].media_type) as archive:
            for member in archive:
                if member.isreg() and inside(member.name) == entry.path and (file := archive.extractfile(member)):
                    yield cast(BinaryIO, file)
                    return
        raise IntegrityError(f"{where}/{name}: is missing")

    return open_
