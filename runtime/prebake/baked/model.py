"""The folder of a baked model, and all such folders under a root."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from prebake.baked import layout
from prebake.baked.manifest import Manifest
from prebake.documents.messages import quote
from prebake.errors import ConfigError


@dataclass(frozen=True, slots=True)
class BakedModel:
    """A model's folder and its manifest."""

    folder: Path
    manifest: Manifest

    @classmethod
    def open(cls, folder: Path) -> BakedModel:
        """Read the folder's manifest. Raises DocumentError if it is missing or malformed."""
        return cls(folder, Manifest.read(folder))

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def weights(self) -> tuple[Path, ...]:
        """The files that hold tensors."""
        return tuple(self.folder / file for file in self.manifest.weights.all_files)

    @property
    def shards(self) -> tuple[str, ...]:
        """The files of weights, relative to the folder, that have an image layer of their own."""
        return tuple(file for file in self.manifest.weights.files if layout.SHARD.fullmatch(file))

    def prefix(self, weights: Path) -> str:
        """What the names of the tensors in this file lack in front."""
        return self.manifest.weights.prefixes.get(weights.relative_to(self.folder).as_posix(), "")


def find_models(root: Path) -> list[BakedModel]:
    """Every model folder under the root, sorted by name.

    If PREBAKE_VERIFY_KEY names a public key, the manifests must be signed with it. Raises ConfigError if the root does
    not exist or holds no model, or if a folder's name differs from the name in its manifest; DocumentError if a folder
    has no manifest or it can't be read; IntegrityError if the signature does not fit, or then a file beside the weights
    does not fit its manifest.
    """
    if not root.is_dir():
        raise ConfigError(
            f"{root}: there is no such folder (expected the root of baked models; set {layout.ENV_ROOT} or --root)"
        )
    refuse_image_layout(root)
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    models = [BakedModel.open(folder) for folder in folders]
    for baked in models:
        if baked.name != baked.folder.name:
            raise ConfigError(f"{baked.folder}: its manifest names another model, {quote(baked.name)}")
    if not models:
        raise ConfigError(f"{root}: holds no baked model (run: prebake bake --output {root})")
    require_signed(root, models)
    return models


def refuse_image_layout(folder: Path) -> None:
    """Raises ConfigError if the folder is an OCI image layout, or a part of one: models are in its layers."""
    if (folder / "oci-layout").exists() or (folder / "blobs" / "sha256").is_dir():
        raise ConfigError(
            f"{folder}: is an OCI image layout, not a root of baked models "
            "(`prebake verify`, `image check`, `diff` and `sbom` read layouts; an image has the models under /models)"
        )


def require_signed(root: Path, models: Sequence[BakedModel], *, all_of_them: bool = True) -> None:
    """Check the signature of these models' manifests, if PREBAKE_VERIFY_KEY names a public key, and then their files:
    that there are no others, and the hashes of those that hold no weights.

    With `all_of_them`, the signature must be of no other model. Raises ConfigError and IntegrityError.
    """
    if key := os.environ.get(layout.ENV_VERIFY_KEY):
        from prebake.baked.integrity import check_beside_weights
        from prebake.baked.signature import check_signature

        check_signature(root, Path(key), [baked.folder.name for baked in models], all_of_them=all_of_them)
        for baked in models:
            check_beside_weights(baked.manifest, baked.folder)
