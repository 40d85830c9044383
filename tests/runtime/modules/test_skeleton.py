"""Skeletons: constructors run as they are, and what they leave uninitialised or random has no values."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy
import pytest
import torch
from torch import nn

from helpers.runtime_fakes import looking, odd, python_says
from prebake.modules.skeleton import Skeleton, default_dtype


def test_a_constructor_that_looks_at_computed_values_survives() -> None:
    with Skeleton():
        module = odd()
    assert module.rates == [0.0, pytest.approx(0.05), pytest.approx(0.1)]
    assert module.sizes == [0, 1, 2, 3]


def test_weights_are_on_meta_and_computed_tensors_are_not() -> None:
    with Skeleton():
        module = odd()
    assert all(parameter.is_meta for parameter in module.parameters())
    assert module.get_buffer("saved").is_meta
    assert torch.equal(module.get_buffer("unsaved"), torch.arange(3.0).exp())


@pytest.mark.parametrize(
    "name",
    ["uniform_", "normal_", "kaiming_normal_", "xavier_uniform_", "orthogonal_", "trunc_normal_", "eye_", "dirac_",
     "constant_", "ones_", "zeros_", "sparse_"],
)  # fmt: skip
def test_every_initialiser_is_passed_over(name: str) -> None:
    arguments = {"constant_": (1.0,), "sparse_": (0.5,)}.get(name, ())
    shape = (3, 3, 3) if name == "dirac_" else (3, 3)
    with Skeleton():
        target = torch.empty(shape)
        assert getattr(nn.init, name)(target, *arguments) is target
    assert target.is_meta


def test_initialisers_still_fill_what_has_values() -> None:
    real = torch.zeros(3)
    with Skeleton():
        nn.init.ones_(real)
        real.mul_(2)
    assert torch.equal(real, torch.full((3,), 2.0))


def test_a_named_device_is_respected() -> None:
    with Skeleton():
        assert torch.empty(2, device="cpu").device.type == "cpu"
        assert torch.rand(2, device="cpu").device.type == "cpu"


@pytest.mark.parametrize("make", [torch.rand, torch.randn])
def test_random_tensors_keep_shape_type_and_gradient(make: object) -> None:
    assert callable(make)
    with Skeleton():
        for tensor in (make(2, 3), make((2, 3)), make(size=(2, 3)), make(2, 3, generator=torch.Generator())):
            assert (tensor.is_meta, tensor.shape, tensor.dtype) == (True, (2, 3), torch.float32)
        assert make(2, dtype=torch.float16, requires_grad=True).dtype is torch.float16
        assert make(2, requires_grad=True).requires_grad


def test_the_random_generator_is_not_advanced() -> None:
    before = torch.random.get_rng_state()
    with Skeleton():
        nn.LSTM(4, 4)
        nn.Conv2d(2, 2, 3)
        nn.Embedding(5, 4, padding_idx=1)
        torch.randn(5)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_constructor_that_looks_at_random_values_fails_as_torch_says_it() -> None:
    with pytest.raises(RuntimeError, match=r"item\(\) cannot be called on meta tensors"), Skeleton():
        looking()


def test_other_threads_build_as_usual_meanwhile() -> None:
    built = []
    with Skeleton():
        thread = threading.Thread(target=lambda: built.append(nn.Linear(2, 2)))
        thread.start()
        thread.join()
    assert not built[0].weight.is_meta


def test_outside_nothing_is_changed() -> None:
    with Skeleton():
        pass
    assert not torch.empty(1).is_meta
    assert float(nn.init.ones_(torch.zeros(1))) == 1


def test_building_does_not_import_sympy() -> None:
    """torch's meta device does, at the first `normal_`: 0.2 s."""
    assert python_says(
        "import sys, torch\n"
        "from prebake.modules.skeleton import Skeleton\n"
        "from helpers.runtime_fakes import odd\n"
        "before = 'sympy' in sys.modules\n"
        "with Skeleton(): odd()\n"
        "print(before, 'sympy' in sys.modules)"
    ) == "False False"  # fmt: skip


MADE: tuple[Callable[[], torch.Tensor], ...] = (
    lambda: torch.zeros(2),
    lambda: torch.ones(2, 2),
    lambda: torch.eye(2),
    lambda: torch.linspace(0, 0.1, 12),
    lambda: torch.logspace(0, 1, 5),
    lambda: torch.hann_window(7),
    lambda: torch.scalar_tensor(0.1),
    lambda: torch.arange(5),
    lambda: torch.arange(0, 1, 0.3),
    lambda: torch.full((2,), 0.1),
    lambda: torch.full((2,), 1),
    lambda: torch.full((2,), fill_value=True),
    lambda: torch.tensor([0.1, 0.2]),
    lambda: torch.tensor([1, 2]),
    lambda: torch.tensor([1, 2], dtype=torch.float32),
    lambda: torch.tensor(numpy.array([0.1], dtype=numpy.float32)),
    lambda: torch.as_tensor([0.1]),
    lambda: torch.as_tensor(torch.ones(1, dtype=torch.float32)),
    lambda: torch.zeros(2, dtype=torch.float32),
    lambda: torch.zeros_like(torch.ones(1, dtype=torch.float32)),
    lambda: torch.arange(3).float(),
    lambda: torch.arange(3).to(torch.float32),
    lambda: torch.arange(3).type(torch.float32),
    lambda: torch.arange(3) / 3,
    lambda: 3 / torch.arange(1, 3),
    lambda: torch.arange(3) * 0.1,
    lambda: torch.arange(3).sqrt(),
    lambda: torch.arange(3) / torch.ones(3, dtype=torch.float32),
    lambda: torch.ones(2, dtype=torch.complex64).abs(),
    lambda: 1.0 / (10000 ** (torch.arange(0, 8, 2, dtype=torch.int64).float() / 8)),
    lambda: nn.Linear(2, 3).weight * 0,
    lambda: nn.LayerNorm(3).weight,
)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_tensors_of_another_default_dtype_are_what_torch_would_make(dtype: torch.dtype) -> None:
    with default_dtype(dtype):
        found = [make() for make in MADE]
        assert torch.get_default_dtype() == torch.float32
    assert torch.zeros(1).dtype == torch.float32
    torch.set_default_dtype(dtype)
    try:
        expected = [make() for make in MADE]
    finally:
        torch.set_default_dtype(torch.float32)
    for number, (theirs, ours) in enumerate(zip(expected, found, strict=True)):
        assert ours.dtype == theirs.dtype, number
        assert torch.equal(ours, theirs), number


def test_a_default_dtype_is_that_of_its_thread_and_of_the_innermost() -> None:
    found: list[torch.dtype] = []
    with default_dtype(torch.bfloat16):
        other = threading.Thread(target=lambda: found.append(torch.zeros(1).dtype))
        other.start()
        other.join(60)
        with default_dtype(torch.float32), Skeleton():
            found += [torch.zeros(1).dtype, torch.empty(1).dtype, torch.rand(1).dtype]
        with Skeleton():
            found += [torch.empty(1).dtype, torch.randn(1).dtype]
            assert torch.empty(1).is_meta
    assert found == [torch.float32] * 4 + [torch.bfloat16] * 2
