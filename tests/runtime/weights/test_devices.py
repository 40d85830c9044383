"""Weights travel to a device in one pass through two staging buffers; here the device is the CPU."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from prebake.errors import ConfigError, TensorFileError
from prebake.weights.devices import Copies, HostCopies, copies_to, send_tensors
from prebake.weights.tensors import map_tensors
from prebake_build.baking.tensor_files import write_tensors


class Delayed(HostCopies):
    """Copies happen when they are waited for: the latest moment that a real device may choose."""

    def __init__(self) -> None:
        self.staged = 0
        self.under_way = 0
        self.most = 0

    def staging(self, size: int) -> torch.Tensor:
        self.staged += 1
        return super().staging(size)

    def begin(self, source: torch.Tensor, target: torch.Tensor) -> Callable[[], object]:
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        pending = [source]

        def wait() -> None:
            if pending:
                target.copy_(pending.pop())
                self.under_way -= 1

        return wait


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "model.safetensors"
    write_tensors(
        path,
        {
            "a": torch.arange(5000, dtype=torch.float32).reshape(50, 100),
            "b": torch.arange(777, dtype=torch.int64),
            "c": torch.randn(33, 7, dtype=torch.bfloat16),
            "empty": torch.empty(0, 3),
            "flag": torch.tensor(True),
        },
    )
    return path


@pytest.mark.parametrize("copies", [HostCopies(), Delayed()])
@pytest.mark.parametrize("chunk", [1, 1000, 4096, 2**20])
def test_every_tensor_arrives_whatever_the_chunk(weights: Path, copies: Copies, chunk: int) -> None:
    sent, mapped = send_tensors(weights, copies, chunk), map_tensors(weights)
    assert sent.keys() == mapped.keys()
    assert all(torch.equal(sent[name], mapped[name]) and sent[name].dtype == mapped[name].dtype for name in mapped)


def test_two_buffers_serve_the_whole_file_and_overlap(weights: Path) -> None:
    copies = Delayed()
    send_tensors(weights, copies, chunk=1000)
    assert (copies.staged, copies.most, copies.under_way) == (2, 2, 0)


def test_all_tensors_are_views_of_one_allocation(weights: Path) -> None:
    sent = send_tensors(weights, HostCopies())
    assert len({tensor.untyped_storage().data_ptr() for tensor in sent.values() if tensor.numel()}) == 1


def test_a_truncated_file_is_refused_before_anything_travels(weights: Path) -> None:
    weights.write_bytes(weights.read_bytes()[:-100])
    copies = Delayed()
    with pytest.raises(TensorFileError, match="truncated or changed"):
        send_tensors(weights, copies)
    assert copies.staged == 0


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what happens without CUDA")
def test_a_device_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError) as error:
        copies_to(torch.device("cuda:1"))
    assert str(error.value) == f'device "cuda:1": this torch ({torch.__version__}) sees no CUDA device'


def test_an_unknown_kind_of_device_is_refused() -> None:
    with pytest.raises(ConfigError) as error:
        copies_to(torch.device("xla"))
    assert str(error.value) == 'device "xla": expected "cpu", "cuda" or "cuda:N"'


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_cuda_the_same_bits_arrive(weights: Path) -> None:
    sent, mapped = send_tensors(weights, copies_to(torch.device("cuda")), chunk=4096), map_tensors(weights)
    assert all(torch.equal(sent[name].cpu(), mapped[name]) for name in mapped)
