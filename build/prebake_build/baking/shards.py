"""Splits the weights of a large model into shards with an index, as the hub's libraries do and read them.

`model.safetensors` becomes `model-00001-of-00003.safetensors` … and `model.safetensors.index.json`. Shards are filled
in the canonical order of a file of tensors, so they depend on the tensors and the size alone.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch

from prebake.documents.table import canonical_json
from prebake_build.baking.tensor_files import canonical_order

MOST = 50
"""Shards of a model at most. Each is a layer of its image, and overlay file systems take some 127 layers; above, shards
get larger."""

Tensors = Mapping[str, torch.Tensor]


def split(
    parts: Mapping[str, Tensors], limit: int, whole: Collection[str] = ()
) -> tuple[dict[str, dict[str, Tensors]], dict[str, str]]:
    """File → the files that take its place, with their tensors; and the indexes of those that were split, by path.

    A file of at most `limit` bytes, of a single tensor, or in `whole` stays as it is. Bytes are those of tensors,
    without headers; a larger tensor has a shard of its own.
    """
    while True:
        shards = {path: [tensors] if path in whole else _filled(tensors, limit) for path, tensors in parts.items()}
        if sum(len(found) for found in shards.values() if len(found) > 1) <= MOST:
            break
        limit += -(-limit // 4)
    files: dict[str, dict[str, Tensors]] = {}
    indexes: dict[str, str] = {}
    for path, found in shards.items():
        names = [path] if len(found) == 1 else [_name(path, number, len(found)) for number in range(1, len(found) + 1)]
        files[path] = dict(zip(names, found, strict=True))
        if len(found) > 1:
            indexes[f"{path}.index.json"] = _index(files[path])
    return files, indexes


def _filled(tensors: Tensors, limit: int) -> list[Tensors]:
    shards: list[dict[str, torch.Tensor]] = [{}]
    size = 0
    for name in canonical_order(tensors):
        count = tensors[name].numel() * tensors[name].element_size()
        if shards[-1] and size + count > limit:
            shards.append({})
            size = 0
        shards[-1][name] = tensors[name]
        size += count
    return [tensors] if len(shards) == 1 else list(shards)


def _name(path: str, number: int, of: int) -> str:
    stem, dot, suffix = path.rpartition(".")
    return f"{stem}-{number:05}-of-{of:05}{dot}{suffix}"


def _index(shards: Mapping[str, Tensors]) -> str:
    size = sum(tensor.numel() * tensor.element_size() for tensors in shards.values() for tensor in tensors.values())
    weights = {name: path.rpartition("/")[2] for path, tensors in shards.items() for name in tensors}
    return canonical_json({"metadata": {"total_size": size}, "weight_map": weights})
