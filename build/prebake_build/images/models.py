"""Baked models wherever they are: in a folder, or in the layers of an image. Nothing is extracted."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

from prebake.baked import layout
from prebake.baked.header import Entry, parse_header
from prebake.baked.manifest import FORMAT, Manifest
from prebake.baked.model import BakedModel, find_models
from prebake.documents.table import parse_json
from prebake.errors import ConfigError, IntegrityError
from prebake_build.files import progress
from prebake_build.images.contents import opened_layer
from prebake_build.images.oci_layout import Image

_CHUNK = 1 << 20
_LARGEST_MANIFEST = 64 << 20


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
    found: dict[str, PlacedModel] = {}
    layers = [(image.layer(number), layer.media_type) for number, layer in enumerate(image.manifest.layers)]
    for number, (path, media_type) in enumerate(layers):
        for folder, text in _manifests(path, media_type).items():
            where = f"{name}:/{folder}"
            manifest = Manifest.from_table(parse_json(text, f"{where}/{layout.MANIFEST}", FORMAT, "manifest"))
            opener = _layer_opener([*layers[number:], *layers[:number]], folder, where)
            found[manifest.name] = PlacedModel(manifest, where, opener)
    if not found:
        raise ConfigError(f"{name}: this image holds no baked model")
    return dict(sorted(found.items()))


def _manifests(path: Path, media_type: str) -> Mapping[str, str]:
    """Folder in the layer → the text of its manifest; other files of that name are left out."""
    found = {}
    with opened_layer(path, media_type) as archive:
        for member in archive:
            if posixpath.basename(member.name) != layout.MANIFEST or not member.isreg():
                continue
            file = archive.extractfile(member) if member.size <= _LARGEST_MANIFEST else None
            text = file.read().decode("utf-8", "replace") if file else ""
            if '"set_digest"' in text:
                found[posixpath.dirname(_inside(member.name))] = text
    return found


def _layer_opener(
    layers: Sequence[tuple[Path, str]], folder: str, where: str
) -> Callable[[str], AbstractContextManager[BinaryIO]]:
    """Opens the files of a model; `layers` begin with that of its manifest, and its shards are in those that follow."""

    @contextmanager
    def open_(name: str) -> Iterator[BinaryIO]:
        for path, media_type in layers:
            with opened_layer(path, media_type) as archive:
                for member in archive:
                    if (
                        member.isreg()
                        and _inside(member.name) == f"{folder}/{name}"
                        and (file := archive.extractfile(member))
                    ):
                        yield cast(BinaryIO, file)
                        return
        raise IntegrityError(f"{where}/{name}: is missing")

    return open_


def _inside(name: str) -> str:
    """A tar entry's name as a path below the image's root."""
    return posixpath.normpath("/" + name).lstrip("/")
