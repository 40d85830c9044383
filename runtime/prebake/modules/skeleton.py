"""Modules without values: tensors that a constructor leaves uninitialised or fills at random are on the meta device.

`torch.device("meta")` puts every tensor there. Then constructors that read values (`.item()`, `tolist()`) fail, every
initialiser runs as a no-op through Python decompositions, and the first `arange` or `normal_` imports sympy (0.2 s).
Here computed tensors (`arange`, `linspace`, `tensor`, `zeros`) are created as usual: they are small, and the baked
tensors replace them anyway.

If a constructor fails because it reads a missing value, `without_values` runs it again with real values.

`default_dtype` changes the default dtype for one thread.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

import torch
from torch.overrides import TorchFunctionMode

logger = logging.getLogger(__name__)

T = TypeVar("T")

_INITIALISERS = (
    "bernoulli_", "cauchy_", "copy_", "erfinv_", "exponential_", "fill_", "geometric_", "log_normal_",
    "normal_", "random_", "uniform_", "zero_", "clamp_", "mul_", "add_", "div_", "sub_",
)  # fmt: skip

_UNINITIALISED = frozenset({torch.empty, torch.empty_strided})
_RANDOM = frozenset({torch.rand, torch.randn})

_OF_DEFAULT_DTYPE = _UNINITIALISED | _RANDOM | {
    torch.zeros, torch.ones, torch.eye, torch.linspace, torch.logspace, torch.scalar_tensor,
    torch.hann_window, torch.hamming_window, torch.blackman_window, torch.bartlett_window, torch.kaiser_window,
}  # fmt: skip
_OF_THEIR_VALUES = frozenset({torch.arange, torch.full, torch.tensor, torch.as_tensor, torch.asarray})
"""These return the default dtype if their values are Python floats."""

_CONVERSIONS = frozenset({"float", "to", "type", "type_as", "view"})


class Skeleton(TorchFunctionMode):
    """While active in a thread, uninitialised and random tensors are created on the meta device, and filling them
    does nothing. Tensors with an explicit device are created on that device."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if getattr(func, "__name__", None) in _fillers():  # by name: frameworks wrap these functions
            target = args[0] if args else kwargs.get("tensor")
            if isinstance(target, torch.Tensor) and target.is_meta:
                return target
        if kwargs.get("device") is None:
            if func in _UNINITIALISED:
                kwargs["device"] = "meta"
            elif func in _RANDOM:  # on meta, these would run Python decompositions
                named = {name: kwargs[name] for name in ("size", "dtype", "requires_grad") if name in kwargs}
                return torch.empty(*args, **named, device="meta")
        return func(*args, **kwargs)


class _DefaultDtype(TorchFunctionMode):
    """Replaces torch's default dtype with another: in the results of functions that create tensors, with or without
    Python floats as values, and of functions that make floats from integers, such as division."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is not None or kwargs.get("out") is not None:
            return func(*args, **kwargs)
        if func in _OF_DEFAULT_DTYPE:
            return func(*args, **kwargs | {"dtype": self._dtype})
        result = func(*args, **kwargs)
        if not isinstance(result, torch.Tensor) or result.dtype != torch.get_default_dtype():
            return result
        given = [value for value in (*args, *kwargs.values()) if hasattr(value, "dtype")]
        if func in _OF_THEIR_VALUES and not given:
            return func(*args, **kwargs | {"dtype": self._dtype})
        return result.to(self._dtype) if _floats_of_integers(func, given) else result


def _floats_of_integers(func: Callable[..., Any], given: list[Any]) -> bool:
    """Whether a result has the default dtype because all inputs are integers and no dtype was given."""
    tensors = [value.dtype for value in given if isinstance(value, torch.Tensor)]
    converts = getattr(func, "__name__", "") in _CONVERSIONS
    return bool(tensors) and not converts and not any(kind.is_floating_point or kind.is_complex for kind in tensors)


_thread = threading.local()


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """In this thread, create tensors as if `dtype` were torch's default. `torch.set_default_dtype` and
    `torch.get_default_dtype` still refer to the default of the process."""
    before = getattr(_thread, "dtype", None)
    if dtype == (before or torch.get_default_dtype()):
        yield
        return
    _thread.dtype = dtype
    try:
        with _DefaultDtype(dtype):
            yield
    finally:
        _thread.dtype = before


def without_values(build: Callable[[], T]) -> T:
    """The result of `build` under a `Skeleton`, or with real values if its constructor fails without them.

    Either way, every tensor is assigned from the baked files afterwards: values only cost time and memory. Restores the
    state of the random generator. Raises what `build` raises outside a skeleton.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with Skeleton():
                return build()
        except Exception as error:  # mixed devices, missing values: constructors raise any exception
            logger.info("built with values, because its constructor fails without: %s: %s", type(error).__name__, error)
        return build()


@lru_cache(maxsize=1)
def _fillers() -> frozenset[str]:
    return frozenset(_INITIALISERS) | {name for name in dir(torch.nn.init) if name.endswith("_") and name[0] != "_"}
