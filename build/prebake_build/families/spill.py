"""Keeps tensors that an ordinary load computes in files, where they would not fit into memory.

A load that only maps its checkpoint takes no memory. One that fuses experts, or is asked for another dtype, makes new
tensors, as large as the model. While `spilling` is active, these are moved into unlinked files as they come, one by
one: the kernel writes their pages to disk when it needs the memory. The values are the same.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, cast

import torch

from prebake_build.files.pages import Mappings

_MAPS = Path("/proc/self/maps")
_SMALLEST = 1 << 20
"""Bytes. Smaller tensors stay in memory."""

_folder: Path | None = None


@contextmanager
def spilling(folder: Path | None) -> Iterator[None]:
    """During the block, `spilled` moves tensors into files of this folder's disk; with None, it does nothing."""
    global _folder
    before, _folder = _folder, folder
    try:
        yield
    finally:
        _folder = before


def spilled(tensor: torch.Tensor) -> torch.Tensor:
    """The tensor, in a file if that is asked for, and it is large and belongs to none. Raises OSError."""
    size = tensor.numel() * tensor.element_size()
    if _folder is None or size < _SMALLEST or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        return tensor
    if Mappings(_MAPS).place(tensor.data_ptr(), tensor.element_size()) is not None:
        return tensor
    with tempfile.TemporaryFile(dir=_folder) as file:
        os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here, and a SIGBUS later
        storage = torch.UntypedStorage.from_file(f"/proc/self/fd/{file.fileno()}", True, size)
    values = torch.empty(0, dtype=torch.uint8).set_(cast(torch.UntypedStorage, storage))
    return values.view(tensor.dtype).reshape(tensor.shape).copy_(tensor.detach())


@contextmanager
def spilling_transformers() -> Iterator[None]:
    """During the block, the loader of transformers 5 moves each parameter that it computed as soon as it is done.

    Its threads would convert all tensors before the first is taken, so it goes without them.
    """
    try:
        module: Any = import_module("transformers.core_model_loading")
    except ImportError:  # 4.57
        module = None
    if module is None or _folder is None:  # not in the `except`: an error in the block would get the wrong context
        yield
        return
    put, waits = module.set_param_for_module, os.environ.get("HF_DEACTIVATE_ASYNC_LOAD")

    def put_spilled(model: Any, target_name: str, param_value: torch.Tensor, *others: Any, **named: Any) -> None:
        put(model, target_name, spilled(param_value), *others, **named)

    module.set_param_for_module = put_spilled
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    try:
        yield
    finally:
        module.set_param_for_module = put
        if waits is None:
            del os.environ["HF_DEACTIVATE_ASYNC_LOAD"]
        else:
            os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = waits
