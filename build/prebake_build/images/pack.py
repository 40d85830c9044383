"""Writes baked models as an OCI image layout, without an engine and without root.

The layout has one layer for each model and for each shard of a large one, one for the models' signature if they have
one, and one image for each platform; the images share the layers. There is no time in it and the models are sorted, so
one set of baked models gives the same bytes on every machine. The new layout is written beside its place and moved
there in one step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.baked.model import BakedModel
from prebake.baked.signature import Signature, differences
from prebake.documents.messages import reason
from prebake.documents.sizes import format_size
from prebake.errors import ConfigError, IntegrityError, PrebakeError
from prebake_build.files.atomic import clear_leftovers, put_in_place, sync_tree
from prebake_build.files.digest import FULL
from prebake_build.files.flock import locked_folder
from prebake_build.files.progress import telling
from prebake_build.images import documents
from prebake_build.images.checks.data import rules
from prebake_build.images.documents import Descriptor, Index, Manifest
from prebake_build.images.layers import WrittenLayer, write_file_layer, write_layer, write_shard_layer
from prebake_build.images.oci_layout import INDEX, MARKER, VERSION, is_layout

logger = logging.getLogger(__name__)

PLATFORMS = ("linux/amd64", "linux/arm64")
EPOCH = "1970-01-01T00:00:00Z"
ANNOTATION = "dev.prebake"
_WORK = ".prebake-oci-"
_MARGIN = 32 << 20
"""Bytes for headers, documents and the file system's own use when the free space is compared."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packing:
    """How a layout is written."""

    root: str = layout.DEFAULT_ROOT
    """Folder of the models in the image."""
    tag: str = "latest"
    """A tag, or a whole name, `registry.example/team/weights:v2`, under which an engine that loads it finds it."""
    compression: str = "uncompressed"
    """One of `layers.COMPRESSIONS`."""
    align: bool = False
    """Whether the weights' data starts on a page of the tar file."""
    platforms: Sequence[str] = PLATFORMS
    annotations: Mapping[str, str] = field(default_factory=dict)
    """Of the images, in addition to the usual ones, which they replace."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Packed:
    """A layout that was written."""

    digest: str
    """`sha256:…` of the image index."""
    layers: Mapping[str, WrittenLayer]
    """Model → its layer, without those of its shards."""
    shards: Mapping[str, Sequence[WrittenLayer]] = field(default_factory=dict)
    """Model → the layers of its shards, in order; only models that were split."""


def pack(models: Sequence[BakedModel], folder: Path, packing: Packing) -> Packed:
    """Write the models as an OCI image layout, which replaces `folder` if that is one.

    Raises ConfigError if there is no model, the folder is something else, or it can't be written; IntegrityError if a
    model is not what its manifest says; PrebakeError if the disk is full. Then the previous layout is unchanged.
    """
    if not models:
        raise ConfigError(f"{folder}: there is no model to write into an image")
    most, signatures = rules().most_layers, _signatures(models)
    if (count := sum(1 + len(baked.shards) for baked in models) + bool(signatures)) > most:
        raise ConfigError(
            f"{folder}: an image of {count} layers, and overlay file systems mount at most {most}: "
            "bake with a larger shard_size, or write fewer models into one image"
        )
    models = sorted(models, key=lambda baked: baked.name)
    size = sum(f.size for baked in models for f in baked.manifest.files)
    with _new_layout(folder, size) as work, telling(f"{folder}: writing", size):
        blobs = work / "blobs" / "sha256"
        blobs.mkdir(parents=True)
        layers = _write_layers(models, blobs, packing)
        signature = _write_signature(signatures[0], models, blobs, packing) if signatures else None
        images = [_write_image(models, layers, signature, blobs, packing, platform) for platform in packing.platforms]
        index = _write_json(blobs, documents.INDEX, Index(manifests=tuple(images)).to_dict())
        named = Index(manifests=(_with(index, documents.name_annotations(packing.tag)),))
        (work / INDEX).write_text(_json(named.to_dict()), encoding="utf-8")
        (work / MARKER).write_text(_json({"imageLayoutVersion": VERSION}), encoding="utf-8")
    return Packed(
        digest=index.digest,
        layers={name: written[0] for name, written in layers.items()},
        shards={name: written[1:] for name, written in layers.items() if len(written) > 1},
    )


def _write_layers(models: Sequence[BakedModel], blobs: Path, packing: Packing) -> dict[str, list[WrittenLayer]]:
    """Model → its layer and those of its shards. Several are written at once: each is bound by its hash, which takes
    one processor."""

    def write(task: tuple[BakedModel, str | None]) -> WrittenLayer:
        baked, shard = task
        path = blobs / f".{baked.name}.{(shard or '').replace('/', '.')}"
        given: dict[str, Any] = {
            "root": packing.root, "compression": packing.compression, "align": packing.align
        }  # fmt: skip
        written = write_layer(baked, path, **given) if shard is None else write_shard_layer(baked, shard, path, **given)
        path.rename(blobs / written.digest.removeprefix("sha256:"))
        return written

    tasks = [(baked, shard) for baked in models for shard in (None, *baked.shards)]
    layers: dict[str, list[WrittenLayer]] = {baked.name: [] for baked in models}
    with ThreadPoolExecutor(max_workers=max(1, len(os.sched_getaffinity(0)))) as threads:
        for (baked, shard), written in zip(tasks, threads.map(write, tasks), strict=True):
            layers[baked.name].append(written)
            _warn(baked, shard, written.size)
    return layers


def _warn(baked: BakedModel, shard: str | None, size: int) -> None:
    refusing = {name: limit for name, limit in rules().limits.items() if size > limit}
    if refusing:
        limits = ", ".join(f"{name} {format_size(limit)}" for name, limit in sorted(refusing.items()))
        logger.warning(
            "%s: the layer of %s has %s, more than some registries take (%s): set a smaller shard_size and bake again",
            baked.name, shard or "its files", format_size(size), limits,
        )  # fmt: skip


def _signatures(models: Sequence[BakedModel]) -> list[Path]:
    """The signatures beside the models."""
    roots = sorted({baked.folder.parent for baked in models})
    return [root / layout.SIGNATURE for root in roots if (root / layout.SIGNATURE).exists()]


def _write_signature(file: Path, models: Sequence[BakedModel], blobs: Path, packing: Packing) -> WrittenLayer:
    """A layer of its own for the signature; those of the models stay the same.

    Raises IntegrityError if it is not the signature of these models.
    """
    if findings := differences(Signature.read(file), file.parent, [baked.name for baked in models]):
        raise IntegrityError(
            f"{file}: is not the signature of these models:\n  " + "\n  ".join(findings)
            + "\nSign them again (prebake sign), or remove it."
        )  # fmt: skip
    written = write_file_layer(file, blobs / ".signature", root=packing.root)
    (blobs / ".signature").rename(blobs / written.digest.removeprefix("sha256:"))
    return written


def _write_image(
    models: Sequence[BakedModel], layers: Mapping[str, Sequence[WrittenLayer]], signature: WrittenLayer | None,
    blobs: Path, packing: Packing, platform: str,
) -> Descriptor:  # fmt: skip
    media_type = documents.LAYER + ("+zstd" if packing.compression == "zstd" else "")
    diff_ids, history, descriptors = [], [], []
    for baked in models:
        made = f"prebake bake {baked.name} # {baked.manifest.set_digest}"
        for shard, written in zip((None, *baked.shards), layers[baked.name], strict=True):
            diff_ids.append(written.diff_id)
            history.append({"created": EPOCH, "created_by": f"{made} {shard}" if shard else made})
            annotations = _layer_annotations(baked) | ({f"{ANNOTATION}.file": shard} if shard else {})
            descriptors.append(
                Descriptor(media_type=media_type, digest=written.digest, size=written.size, annotations=annotations)
            )
    if signature:
        diff_ids.append(signature.diff_id)
        history.append({"created": EPOCH, "created_by": "prebake sign"})
        descriptors.append(Descriptor(media_type=documents.LAYER, digest=signature.digest, size=signature.size))
    annotations = {**_annotations(models), **packing.annotations}
    config = _write_json(
        blobs,
        documents.CONFIG,
        {
            **documents.platform_dict(platform),
            "created": EPOCH,
            "config": {"Labels": annotations},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": history,
        },
    )
    manifest = Manifest(config=config, layers=tuple(descriptors), annotations=annotations)
    return _with(_write_json(blobs, documents.MANIFEST, manifest.to_dict()), {}, platform)


def _annotations(models: Sequence[BakedModel]) -> dict[str, str]:
    licences = sorted({licence for baked in models if (licence := baked.manifest.source.licence)})
    sources = [baked.manifest.source.uri for baked in models]
    return {
        "org.opencontainers.image.title": "Baked models",
        "org.opencontainers.image.description": f"Model weights below the models' names: {', '.join(sources)}",
        **({"org.opencontainers.image.licenses": " AND ".join(licences)} if licences else {}),
        f"{ANNOTATION}.models": ",".join(baked.name for baked in models),
    }


def _layer_annotations(baked: BakedModel) -> dict[str, str]:
    return {
        f"{ANNOTATION}.model": baked.name,
        f"{ANNOTATION}.set-digest": baked.manifest.set_digest,
        f"{ANNOTATION}.source": baked.manifest.source.uri,
        f"{ANNOTATION}.revision": baked.manifest.source.revision,
    }


def _write_json(blobs: Path, media_type: str, document: Mapping[str, Any]) -> Descriptor:
    data = _json(document).encode()
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return Descriptor(media_type=media_type, digest=f"sha256:{digest}", size=len(data))


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def _with(descriptor: Descriptor, annotations: Mapping[str, str], platform: str | None = None) -> Descriptor:
    return Descriptor(media_type=descriptor.media_type, digest=descriptor.digest, size=descriptor.size,
                      annotations=annotations, platform=platform)  # fmt: skip


def check_place(place: Path) -> None:
    """Raises ConfigError if a layout can't be put here: there is something else."""
    if place.exists() and not is_layout(place) and not (place.is_dir() and not any(place.iterdir())):
        raise ConfigError(f"{place}: exists and is not an OCI image layout: move it, or name another folder")


@contextmanager
def _new_layout(place: Path, size: int) -> Iterator[Path]:
    """A folder to fill, which becomes `place` if the block succeeds and is removed otherwise."""
    place = place.resolve()
    check_place(place)
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        with locked_folder(place.parent):
            clear_leftovers(place.parent, f"{_WORK}{place.name}.")
            most, free = size + _MARGIN, shutil.disk_usage(place.parent).free
            if free < most:
                raise PrebakeError(
                    f"{place}: the layout takes {format_size(most)} at most, and {format_size(free)} are free: "
                    "free some space"
                )
            work = Path(tempfile.mkdtemp(prefix=f"{_WORK}{place.name}.", dir=place.parent))
            try:
                folder = work / place.name
                folder.mkdir()
                yield folder
                sync_tree(folder)
                put_in_place(folder, place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except OSError as error:
        unchanged = " The previous layout is unchanged." if is_layout(place) else ""
        full = error.errno in FULL
        way = "free some space, or name another folder" if full else "name another folder"
        raise (PrebakeError if full else ConfigError)(
            f"{place}: cannot write the layout: {reason(error)}: {way}.{unchanged}"
        ) from error
