"""Copies weights to an accelerator: one pass over the mapped file, through two pinned buffers.

While one buffer is copied to the device, the other is filled from the mapping, which reads the disk. The device gets
the data part as one allocation, and every tensor is a view of it. `Copies` abstracts the device; `HostCopies`
implements it on the CPU, so the pass can be tested without an accelerator.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import torch

from prebake.baked.header import read_header
from prebake.errors import ConfigError
from prebake.weights.tensors import map_storage, views

CHUNK = 32 * 2**20
"""Bytes of each staging buffer: large enough to saturate the bus, and a small share of host memory."""


class Copies(Protocol):
    """Copies bytes to a device."""

    def allocate(self, size: int) -> torch.Tensor:
        """`size` bytes on the device, uint8."""

    def staging(self, size: int) -> torch.Tensor:
        """`size` bytes of host memory for asynchronous copies (pinned, for CUDA), uint8."""

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
        """Start copying staged bytes; the returned function waits until `source` may be overwritten."""


class CudaCopies:
    """Pinned host memory, and a separate CUDA stream."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def allocate(self, size: int) -> torch.Tensor:
        target = torch.empty(size, dtype=torch.uint8, device=self._device)
        # the allocator may return memory that the current stream still uses
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        return target

    def staging(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, pin_memory=True)

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
        with torch.cuda.stream(self._stream):
            target.copy_(source, non_blocking=True)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(self._stream)
        return done.synchronize


class HostCopies:
    """The same pass on the CPU."""

    def allocate(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def staging(self, size: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8)

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
        target.copy_(source)
        return lambda: None


def copies_to(device: torch.device) -> Copies:
    """The copies for this device. Raises ConfigError if the device is unavailable or of an unknown type."""
    if device.type == "cuda":
        if not torch.cuda.is_available():
            raise ConfigError(f'device "{device}": this torch ({torch.__version__}) sees no CUDA device')
        return CudaCopies(device)
    raise ConfigError(f'device "{device}": expected "cpu", "cuda" or "cuda:N"')


def send_tensors(path: Path, copies: Copies, chunk: int = CHUNK) -> dict[str, torch.Tensor]:
    """All tensors of the file, on the device. The file is unmapped when this returns.

    Raises TensorFileError if the file does not match its header or can't be mapped.
    """
    header = read_header(path)
    source = torch.empty(0, dtype=torch.uint8).set_(map_storage(path, header))
    target = copies.allocate(header.size)
    buffers = [copies.staging(min(chunk, max(header.size, 1))) for _ in range(2)]
    waits: list[Callable[[], object]] = [lambda: None, lambda: None]
    for number, begin in enumerate(range(0, header.size, chunk)):
        end, turn = min(begin + chunk, header.size), number % 2
        waits[turn]()
        staged = buffers[turn][: end - begin]
        staged.copy_(source[header.data_start + begin : header.data_start + end])
        waits[turn] = copies.begin(staged, target[begin:end])
    for wait in waits:
        wait()
    return views(target.untyped_storage(), header, 0, path)
