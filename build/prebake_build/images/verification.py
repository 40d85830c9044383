"""Holds the models in an image against their manifests, as a container sees them: each file's hash, and no others.

Nothing is extracted but the manifests and the signature, which are small.
"""

from __future__ import annotations

import posixpath
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from prebake.baked import layout
from prebake.documents.messages import quote
from prebake.errors import IntegrityError, PrebakeError
from prebake_build.images.contents import Contents, read_contents
from prebake_build.images.models import LARGEST_MANIFEST, PlacedModel, is_manifest, models_among
from prebake_build.images.oci_layout import Image


@dataclass(frozen=True, slots=True)
class ImageModels:
    """The models of an image."""

    name: str
    """What messages call the image."""
    models: Mapping[str, PlacedModel]
    contents: Contents

    @classmethod
    def read(cls, image: Image, name: str, *, hashes: bool) -> ImageModels:
        """Read every layer; `hashes` hashes all files. Raises ConfigError if there is no model, DocumentError and
        IntegrityError for an image that cannot be read."""
        contents = read_contents(
            image, large=1 if hashes else None, keep=LARGEST_MANIFEST,
            wanted=lambda path: is_manifest(path) or posixpath.basename(path) == layout.SIGNATURE,
        )  # fmt: skip
        return cls(name, models_among(contents, image, name), contents)

    def findings(self, model: PlacedModel) -> list[str]:
        """What is not as the model's manifest says, one line each: sizes, hashes if they were read, other files, its
        name, and the headers of the weights."""
        folder, found = self._folder(model), []
        listed = {file.path: file for file in model.manifest.files}
        for path, file in listed.items():
            entry = self.contents.resolve(f"{folder}/{path}")
            if entry is None or entry.kind != "file":
                found.append(f"{path}: missing")
            elif entry.size != file.size:
                found.append(f"{path}: expected {file.size:,} bytes, found {entry.size:,}")
            elif entry.digest and entry.digest != f"sha256:{file.sha256}":
                found.append(f"{path}: expected sha256 {file.sha256}, found {entry.digest.removeprefix('sha256:')}")
        inside = {path.removeprefix(f"{folder}/") for path, entry in self.contents.files.items()
                  if path.startswith(f"{folder}/") and entry.kind != "folder"}  # fmt: skip
        found += [f"{path}: not listed" for path in sorted(inside - listed.keys() - {layout.MANIFEST})]
        if posixpath.basename(folder) != model.manifest.name:
            found.append(f"its manifest names another model, {quote(model.manifest.name)}")
        found = [f"{model.place}: {finding}" for finding in found]
        try:
            model.tensors()
        except PrebakeError as error:
            found.append(str(error))
        return found

    def write_signed(self, root: Path) -> str:
        """Write what was signed, and the signature, into an empty folder; returns where they are in the image.

        Raises IntegrityError if there is no signature beside the models.
        """
        (first, *others) = sorted({posixpath.dirname(self._folder(model)) for model in self.models.values()})
        where = f"{self.name}:/{first}"
        if others:
            raise IntegrityError(f"{where}: other models are in /{others[0]}: no signature covers both folders")
        signature = self.contents.files.get(posixpath.join(first, layout.SIGNATURE))
        if signature is None:
            raise IntegrityError(
                f"{where}/{layout.SIGNATURE}: there is no such file: the models are not signed (prebake sign)"
            )
        (root / layout.SIGNATURE).write_bytes(signature.text)
        for model in self.models.values():
            folder = self._folder(model)
            (root / posixpath.basename(folder)).mkdir()
            manifest = self.contents.files[f"{folder}/{layout.MANIFEST}"]
            (root / posixpath.basename(folder) / layout.MANIFEST).write_bytes(manifest.text)
        return where

    def _folder(self, model: PlacedModel) -> str:
        return model.place.removeprefix(f"{self.name}:/")
