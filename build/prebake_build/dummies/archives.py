"""The three file formats in which upstream publishes weights, written tensor by tensor.

`torch.save` can write two of them, but its bytes change between versions of torch (new records, other alignment), it
keeps everything in memory, and it no longer writes the format of upstream's oldest files. Here the bytes depend only on
the tensors' names, shapes and seed. The formats were derived from files that `torch.save` and `safetensors` wrote; the
tests read the results with both.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import struct
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import numpy as np

from prebake_build.dummies.weights import Tensor

ALIGNMENT = 64
"""Bytes. torch aligns the storages of its zip files to this, so that they can be mapped."""

_LOCAL_HEADER = 30
"""Bytes of a zip entry before its name."""
_EPOCH = (1980, 1, 1, 0, 0, 0)
_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_VERSION = 1001
_SAFETENSORS_DTYPES = {"float32": "F32", "float16": "F16", "int64": "I64"}
_STORAGES = {"float32": "FloatStorage", "float16": "HalfStorage", "int64": "LongStorage"}

Progress = Callable[[int], object]
"""Called with the number of bytes generated."""


def write_torch_zip(
    path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, Any], progress: Progress, location: str = "cpu"
) -> None:
    """A state dict in the format of torch 1.6 and newer: a zip of a pickle and one stored entry per storage."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, data in (("data.pkl", _pickled(tensors, metadata, location)), ("byteorder", b"little")):
            with archive.open(_aligned(archive, f"archive/{name}", len(data)), "w") as entry:
                entry.write(data)
        for key, tensor in _storages(tensors).items():
            with archive.open(_aligned(archive, f"archive/data/{key}", tensor.nbytes), "w") as entry:
                _write_values(entry, tensor, progress)
        with archive.open(_aligned(archive, "archive/version", 2), "w") as entry:
            entry.write(b"3\n")


def write_torch_legacy(
    path: Path, tensors: Sequence[Tensor], metadata: Mapping[str, Any], progress: Progress, location: str = "cpu"
) -> None:
    """A state dict in the format before torch 1.6: four pickles, the storages' names, then the storages."""
    sizes = {"short": 2, "int": 4, "long": 4}
    system = {"protocol_version": _LEGACY_VERSION, "little_endian": True, "type_sizes": sizes}
    storages = _storages(tensors)
    with path.open("wb") as file:
        for head in (_LEGACY_MAGIC, _LEGACY_VERSION, system):
            pickle.dump(head, file, protocol=2)
        file.write(_pickled(tensors, metadata, location, legacy=True))
        keys = sorted(storages)
        pickle.dump(keys, file, protocol=2)
        for key in keys:
            file.write(struct.pack("<q", storages[key].numel))
            _write_values(file, storages[key], progress)


def write_safetensors(path: Path, tensors: Iterable[Tensor], progress: Progress) -> None:
    """A safetensors file in the format of the `safetensors` package."""
    ordered = _safetensors_order(tensors)
    with path.open("wb") as file:
        file.write(safetensors_header(ordered))
        for tensor in ordered:
            _write_values(file, tensor, progress)


def safetensors_header(tensors: Iterable[Tensor]) -> bytes:
    """The header: its length, then JSON padded with spaces to a multiple of 8 bytes."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for tensor in _safetensors_order(tensors):
        start, end = end, end + tensor.nbytes
        header[tensor.name] = {
            "dtype": _SAFETENSORS_DTYPES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end],
        }  # fmt: skip
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def _safetensors_order(tensors: Iterable[Tensor]) -> list[Tensor]:
    return sorted(tensors, key=lambda tensor: (-np.dtype(tensor.dtype).itemsize, tensor.name))


def write_zip(path: Path, member: Path) -> None:
    """A zip that stores one file, without a timestamp."""
    with (
        member.open("rb") as source,
        zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive,
        archive.open(_entry(member.name, member.stat().st_size), "w") as entry,
    ):
        shutil.copyfileobj(source, entry, 1 << 20)


def _write_values(file: IO[bytes], tensor: Tensor, progress: Progress) -> None:
    little = np.dtype(tensor.dtype).newbyteorder("<")
    for chunk in tensor.chunks():
        file.write(chunk.astype(little, copy=False).data)
        progress(chunk.nbytes)


def _entry(name: str, size: int) -> zipfile.ZipInfo:
    info = zipfile.ZipInfo(name, _EPOCH)
    info.create_system = 3  # else the entry would depend on the system
    info.external_attr = 0o644 << 16
    info.file_size = size
    return info


def _aligned(archive: zipfile.ZipFile, name: str, size: int) -> zipfile.ZipInfo:
    """An entry whose data begins at a multiple of ALIGNMENT, padded with an extra field `FB` like torch's."""
    info = _entry(name, size)
    begin = archive.start_dir + _LOCAL_HEADER + len(name.encode()) + len("FB__")
    padding = -begin % ALIGNMENT
    info.extra = b"FB" + struct.pack("<H", padding) + b"Z" * padding
    return info


def _storages(tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """Key → the tensor whose values the storage holds, in the tensors' order."""
    owners = [tensor for tensor in tensors if tensor.same_storage_as is None]
    return {str(index): tensor for index, tensor in enumerate(owners)}


class _Storage:
    """Marks a reference to a storage in the pickle."""

    def __init__(self, tensor: Tensor, key: str) -> None:
        self.tensor, self.key = tensor, key


class _Rebuilt:
    """Pickles as a call of the function that creates a tensor from a storage."""

    def __init__(self, tensor: Tensor, storage: _Storage) -> None:
        self.tensor, self.storage = tensor, storage

    def __reduce__(self) -> tuple[Any, ...]:
        import torch

        strides = tuple(int(np.prod(self.tensor.shape[axis + 1 :])) for axis in range(len(self.tensor.shape)))
        arguments: tuple[Any, ...] = (self.storage, 0, tuple(self.tensor.shape), strides, False, OrderedDict())
        return torch._utils._rebuild_tensor_v2, arguments


class _Pickler(pickle.Pickler):
    def __init__(self, file: IO[bytes], location: str, legacy: bool) -> None:
        super().__init__(file, protocol=2)
        self._location, self._legacy = location, legacy

    def persistent_id(self, value: object) -> tuple[Any, ...] | None:
        if not isinstance(value, _Storage):
            return None
        import torch

        kind = getattr(torch, _STORAGES[value.tensor.dtype])
        found = ("storage", kind, value.key, self._location, value.tensor.numel)
        return (*found, None) if self._legacy else found


def _pickled(tensors: Sequence[Tensor], metadata: Mapping[str, Any], location: str, legacy: bool = False) -> bytes:
    storages = {tensor.name: _Storage(tensor, key) for key, tensor in _storages(tensors).items()}
    state: OrderedDict[str, _Rebuilt] = OrderedDict(
        (tensor.name, _Rebuilt(tensor, storages[tensor.same_storage_as or tensor.name])) for tensor in tensors
    )
    state._metadata = OrderedDict((name, dict(value)) for name, value in metadata.items())  # type: ignore[attr-defined]
    buffer = io.BytesIO()
    _Pickler(buffer, location, legacy).dump(state)
    return buffer.getvalue()
