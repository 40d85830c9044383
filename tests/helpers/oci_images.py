"""Images of any contents as OCI layouts, without an engine."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers.baked_folders import safetensors

MEGABYTE = 1_000_000
GOOD_LABELS = {
    "org.opencontainers.image.title": "Test",
    "org.opencontainers.image.licenses": "mit",
    "org.opencontainers.image.source": "https://example.org",
}
GOOD_CONFIG = {"User": "65532:65532", "Cmd": ["serve"], "Env": ["HF_HUB_OFFLINE=1"], "Labels": GOOD_LABELS}


def weights(megabytes: int = 2, fill: bytes = b"\1") -> bytes:
    """A safetensors file of about that size."""
    return safetensors({"w": [megabytes * MEGABYTE // 4]}, fill)


@dataclass(frozen=True)
class Node:
    """A file with what a tar entry says of it; `target` makes it a symlink, `folder` a folder."""

    data: bytes = b""
    mode: int = 0o644
    uid: int = 0
    target: str = ""
    hard: bool = False
    folder: bool = False


@dataclass(frozen=True)
class LayerOf:
    """One layer: path → contents."""

    files: Mapping[str, bytes | Node]
    created_by: str = "COPY . . # buildkit"
    gzip: bool = False
    declared_size: int | None = None


def write_image(folder: Path, *layers: LayerOf, config: Mapping[str, Any] = GOOD_CONFIG, history: Sequence[str] = (),
                tags: Sequence[str] = ("latest",)) -> Path:  # fmt: skip
    """Write the layout. `history` are instructions that make no layer, before the others."""
    blobs = folder / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    descriptors, diff_ids = [], []
    for layer in layers:
        plain = _tar(layer.files)
        diff_ids.append("sha256:" + hashlib.sha256(plain).hexdigest())
        data = gzip.compress(plain, mtime=0) if layer.gzip else plain
        media_type = "application/vnd.oci.image.layer.v1.tar" + ("+gzip" if layer.gzip else "")
        descriptors.append(_blob(blobs, data, media_type))
        if layer.declared_size:
            descriptors[-1]["size"] = layer.declared_size
            with (blobs / descriptors[-1]["digest"].partition(":")[2]).open("r+b") as file:
                file.truncate(layer.declared_size)  # zeros follow a tar file's end
    document = {
        "architecture": "amd64", "os": "linux", "config": dict(config),
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "history": [*({"created_by": step, "empty_layer": True} for step in history),
                    *({"created_by": layer.created_by} for layer in layers)],
    }  # fmt: skip
    manifest = {
        "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": _json(blobs, document, "application/vnd.oci.image.config.v1+json"), "layers": descriptors,
    }  # fmt: skip
    descriptor = _json(blobs, manifest, "application/vnd.oci.image.manifest.v1+json")
    named = [{**descriptor, "annotations": {"org.opencontainers.image.ref.name": tag}} for tag in tags]
    (folder / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": named}))
    (folder / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')
    return folder


def _tar(files: Mapping[str, bytes | Node]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for path, value in files.items():
            node = value if isinstance(value, Node) else Node(value)
            entry = tarfile.TarInfo(path)
            entry.mode, entry.uid, entry.size = node.mode, node.uid, len(node.data)
            if node.target:
                entry.type, entry.linkname = (tarfile.LNKTYPE if node.hard else tarfile.SYMTYPE), node.target
            elif node.folder:
                entry.type = tarfile.DIRTYPE
            archive.addfile(entry, io.BytesIO(node.data))
    return buffer.getvalue()


def _json(blobs: Path, document: Mapping[str, Any], media_type: str) -> dict[str, Any]:
    return _blob(blobs, json.dumps(document).encode(), media_type)


def _blob(blobs: Path, data: bytes, media_type: str) -> dict[str, Any]:
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{digest}", "size": len(data)}
