"""Baked model folders made by hand, without a checkpoint and without torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

from prebake.baked import layout
from prebake.baked.manifest import File, Manifest, Source, Weights
from prebake.baked.model import BakedModel

FLOATS = {"a.weight": [16, 32], "b.bias": [8]}


def safetensors(tensors: Mapping[str, list[int]], fill: bytes = b"\1", dtype: str = "F32") -> bytes:
    """A safetensors file of tensors of these shapes; all bytes of the data are `fill`."""
    item = {"F32": 4, "F16": 2, "BF16": 2, "I64": 8}[dtype]
    document: dict[str, object] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, shape in sorted(tensors.items()):
        size = item
        for count in shape:
            size *= count
        document[name] = {"dtype": dtype, "shape": shape, "data_offsets": [position, position + size]}
        position += size
    text = json.dumps(document).encode()
    text += b" " * (-(8 + len(text)) % layout.PAGE)
    return len(text).to_bytes(8, "little") + text + fill * position


def baked_folder(
    root: Path, name: str, tensors: Mapping[str, list[int]] = FLOATS, *, fill: bytes = b"\1", dtype: str = "F32",
    files: Mapping[str, bytes] | None = None, licence: str | None = "mit", revision: str = "1" * 40,
    converter: Mapping[str, str] | None = None, shards: int = 1,
) -> BakedModel:  # fmt: skip
    """A baked model of random shape: weights, a configuration, and other files. Each shard has the tensors again, under
    names that begin with its number."""
    folder = root / name
    weights = {layout.WEIGHTS: safetensors(tensors, fill, dtype)}
    if shards > 1:
        weights = {f"model-{number:05}-of-{shards:05}.safetensors":
                   safetensors({f"{number}.{key}": shape for key, shape in tensors.items()}, bytes([number]), dtype)
                   for number in range(1, shards + 1)}  # fmt: skip
    contents = {**weights, "config.json": b"{}", **(files or {})}
    for path, data in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    listed = [File(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
              for path, data in sorted(contents.items())]  # fmt: skip
    size = sum(len(data) - 8 - int.from_bytes(data[:8], "little") for data in weights.values())
    manifest = Manifest(
        name=name,
        family="transformers",
        class_="BertModel",
        source=Source(uri=f"hf:acme/{name}", revision=f"commit:{revision}", licence=licence),
        files=tuple(listed),
        weights=Weights(
            files=tuple(weights),
            buffers=None,
            tensors=len(tensors) * shards,
            bytes=size,
            dtypes={dtype: len(tensors) * shards},
        ),
        converter=dict(converter or {"prebake-build": "0.1.0", "recipe": "sha256:" + "5" * 64}),
    )
    (folder / layout.MANIFEST).write_text(manifest.text, encoding="utf-8")
    return BakedModel.open(folder)
