"""Reads OCI image layouts: folders with `oci-layout`, `index.json` and blobs named by their digest.

A blob's size is checked whenever it is opened, and its digest when it is a document. Layers are hashed by
`Layout.check_layers`, which takes as long as reading them.

Specification: https://github.com/opencontainers/image-spec/blob/main/image-layout.md
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.documents.messages import nearest, quote, reason
from prebake.documents.table import Table
from prebake.errors import ConfigError, DocumentError, IntegrityError
from prebake_build.files.digest import sha256_of
from prebake_build.files.progress import telling
from prebake_build.images import documents
from prebake_build.images.documents import Config, Descriptor, Index, Manifest

MARKER = "oci-layout"
INDEX = "index.json"
VERSION = "1.0.0"
LARGEST_DOCUMENT = 16 << 20
"""Bytes; registries refuse manifests of more than 4 MB, and a configuration is of the same order."""
_AGAIN = "copy the layout again, or write it anew"
_DEEPEST = 4
"""Indexes inside indexes."""
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True, kw_only=True, slots=True)
class Image:
    """One platform's image in a layout."""

    layout: Layout
    digest: str
    """`sha256:…` of its manifest."""
    platform: str | None
    manifest: Manifest
    config: Config
    annotations: dict[str, str]
    """Of the manifest, of the indexes above it, and of its descriptors."""

    def layer(self, number: int) -> Path:
        """The file of a layer, the lowest is 0. Raises IntegrityError if it is missing or has another size."""
        return self.layout.blob(self.manifest.layers[number])


@dataclass(frozen=True, slots=True)
class Layout:
    """The folder and its index."""

    folder: Path
    index: Index

    @classmethod
    def open(cls, folder: Path) -> Layout:
        """Read the folder's index. Raises ConfigError if it is not a layout, IntegrityError if it is half of one, and
        DocumentError if it is malformed."""
        if not is_layout(folder):
            if is_part(folder):
                missing = " and ".join(name for name in (MARKER, INDEX) if not (folder / name).is_file())
                raise IntegrityError(f"{folder}: is a part of an OCI image layout: {missing} is missing: {_AGAIN}")
            raise ConfigError(f"{folder}: is not an OCI image layout (expected the files {MARKER} and {INDEX} in it)")
        marker = _parse(folder / MARKER, _read(folder / MARKER))
        version = marker.take("imageLayoutVersion", str)
        if version != VERSION:
            raise marker.fail("imageLayoutVersion", f"{quote(version)} is not {VERSION}, which this Prebake reads")
        return cls(folder, Index.from_table(_parse(folder / INDEX, _read(folder / INDEX))))

    def blob(self, descriptor: Descriptor) -> Path:
        """The blob's file. Raises IntegrityError if it is missing or has another size."""
        path = self._path(descriptor)
        if not path.is_file() or path.is_symlink():
            raise IntegrityError(f"{self.folder}: blob {descriptor.digest} is missing: {_AGAIN}")
        if (found := path.stat().st_size) != descriptor.size:
            raise IntegrityError(
                f"{self.folder}: blob {descriptor.digest}: expected {descriptor.size:,} bytes, found {found:,}: "
                f"{_AGAIN}"
            )
        return path

    def _path(self, descriptor: Descriptor) -> Path:
        return self.folder / "blobs" / "sha256" / descriptor.digest.removeprefix("sha256:")

    def image(self, *, name: str | None = None, wanted: str | None = None) -> Image:
        """The image with this tag (default: the only one) for one platform (default: this machine's).

        An image without a platform, and the only image of an index, serve any platform. Raises ConfigError that lists
        what there is, IntegrityError and DocumentError.
        """
        found = self.images(name=name)
        platform_ = wanted or this_platform()
        chosen = [image for image in found if image.platform in (platform_, None)]
        if not chosen and len(found) == 1 and wanted is None:
            chosen = found
        if not chosen:
            known = ", ".join(sorted({image.platform or "any" for image in found})) or "none"
            raise ConfigError(f"{self.folder}: holds no image for {platform_} (it has: {known})")
        return chosen[0]

    def images(self, *, name: str | None = None) -> list[Image]:
        """The images of all platforms with this tag (default: of the only tag)."""
        names = [found for entry in self.index.manifests if (found := entry.annotations.get(documents.REF_NAME))]
        if name is None and len(set(names)) > 1:
            raise ConfigError(f"{self.folder}: holds several images: name one: {', '.join(sorted(set(names)))}")
        if name is not None and name not in names:
            known = ", ".join(sorted(names)) or "no name"
            raise ConfigError(
                f"{self.folder}: holds no image named {quote(name)} (it has {known}){nearest(name, names)}"
            )
        entries = [e for e in self.index.manifests if name is None or e.annotations.get(documents.REF_NAME) == name]
        return [image for entry in entries for image in self._below(entry, {}, 0)]

    def _below(self, entry: Descriptor, annotations: dict[str, str], depth: int) -> list[Image]:
        annotations = {**annotations, **entry.annotations}
        if entry.media_type in documents.INDEXES:
            if depth == _DEEPEST:
                raise DocumentError(f"{self.folder}: its indexes are nested more than {_DEEPEST} levels deep")
            index = Index.from_table(self._document(entry))
            annotations |= index.annotations
            # engines save the platform that they pulled, below an index that names all of them
            there = [inner for inner in index.manifests if self._path(inner).exists()]
            return [image for inner in there or index.manifests for image in self._below(inner, annotations, depth + 1)]
        if entry.media_type not in documents.MANIFESTS or _is_attestation(entry):
            return []
        manifest = Manifest.from_table(self._document(entry))
        config_table = self._document(manifest.config)
        config = Config.from_table(config_table)
        if len(config.diff_ids) != len(manifest.layers):
            raise DocumentError(
                f"{self.folder}: image {entry.digest}: its manifest has {len(manifest.layers)} layers, its "
                f"configuration {len(config.diff_ids)}"
            )
        of_config = "/".join(
            part for key in ("os", "architecture", "variant") if (part := config_table.maybe(key, str))
        )
        return [
            Image(layout=self, digest=entry.digest, platform=entry.platform or of_config or None, manifest=manifest,
                  config=config, annotations={**annotations, **manifest.annotations})
        ]  # fmt: skip

    def _document(self, descriptor: Descriptor) -> Table:
        data = _read(self.blob(descriptor))
        if (found := "sha256:" + hashlib.sha256(data).hexdigest()) != descriptor.digest:
            raise IntegrityError(f"{self.folder}: blob {descriptor.digest} has the digest {found}: {_AGAIN}")
        return _parse(f"{self.folder}: {descriptor.digest}", data)

    def check_layers(self, images: Sequence[Image]) -> None:
        """Hash every layer. Raises IntegrityError that lists those whose bytes do not have their digest."""
        layers = {layer.digest: layer for image in images for layer in image.manifest.layers}
        findings = []
        with telling(f"{self.folder}: hashing", sum(layer.size for layer in layers.values())):
            for digest, layer in sorted(layers.items()):
                if (found := "sha256:" + sha256_of(self.blob(layer))) != digest:
                    findings.append(f"blob {digest} has the digest {found}")
        if findings:
            listed = "\n  ".join(findings)
            raise IntegrityError(f"{self.folder}: layers were changed:\n  {listed}\n{_AGAIN.capitalize()}.")


def is_layout(folder: Path) -> bool:
    """Whether the folder has the two files that make an OCI image layout."""
    return (folder / MARKER).is_file() and (folder / INDEX).is_file()


def is_part(folder: Path) -> bool:
    """Whether the folder has something of a layout, whole or half written."""
    return (folder / MARKER).exists() or (folder / "blobs" / "sha256").is_dir()


def this_platform() -> str:
    """`linux/amd64` or what this machine is."""
    machine = platform.machine()
    return f"linux/{_ARCHITECTURES.get(machine, machine)}"


def _is_attestation(entry: Descriptor) -> bool:
    return entry.annotations.get("vnd.docker.reference.type") == "attestation-manifest"


def _read(path: Path) -> bytes:
    try:
        if (size := path.stat().st_size) > LARGEST_DOCUMENT:
            raise DocumentError(f"{path}: {size:,} bytes are too many for a document of an image")
        return path.read_bytes()
    except OSError as error:
        raise DocumentError(f"{path}: cannot be read: {reason(error)}") from error


def _parse(where: object, data: bytes) -> Table:
    try:
        document: Any = json.loads(data.decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise DocumentError(f"{where}: is not JSON: {error}") from error
    return Table(document, str(where))
