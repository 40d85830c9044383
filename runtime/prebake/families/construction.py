"""Thread-local versions of the global changes that transformers makes while it constructs a model.

Like `from_pretrained`, Prebake skips `init_weights` and creates tensors in the model's dtype. The library's own context
managers (`no_init_weights`, `local_torch_dtype`) patch its classes and torch's default dtype, which other threads and
forked children see. Instead, this module replaces the library's functions once and permanently with wrappers that check
whether the current thread constructs a skeleton, and call the original if not.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch

from prebake.modules.skeleton import default_dtype

_thread = threading.local()

Make = Callable[[Any, str, Mapping[str, Any]], Any]
"""Makes the model for a call of `from_pretrained`, from its class, path and keyword arguments."""


@contextmanager
def skeleton_of(dtype: torch.dtype) -> Iterator[None]:
    """In this thread, transformers skips initialising and tying weights, and creates tensors of this dtype.

    The caller assigns every tensor afterwards; initialising them would take a third of a skeleton's time.
    """
    _replace_functions()
    before = _constructs()
    _thread.constructs = True
    try:
        with default_dtype(dtype):
            yield
    finally:
        _thread.constructs = before


@contextmanager
def loaded_by(make: Make | None, made: list[Any]) -> Iterator[None]:
    """In this thread, `PreTrainedModel.from_pretrained` returns what `make` makes, and its results are added to `made`.
    With None, the function loads as usual."""
    from transformers import PreTrainedModel

    if not hasattr(PreTrainedModel.from_pretrained, "_prebake_loads"):  # `adopt` marks its own with `_prebake`
        PreTrainedModel.from_pretrained = classmethod(_from_pretrained(PreTrainedModel.from_pretrained.__func__))
    before = getattr(_thread, "loads", None)
    _thread.loads = (make, made)
    try:
        yield
    finally:
        _thread.loads = before


def _from_pretrained(original: Any) -> Any:
    @functools.wraps(original)
    def from_pretrained(cls: Any, path: Any, *arguments: Any, **given: Any) -> Any:
        loads = getattr(_thread, "loads", None)
        if loads is None:
            return original(cls, path, *arguments, **given)
        make, made = loads
        _thread.loads = None  # the original may load parts of its own
        try:
            result = make(cls, path, given) if make else original(cls, path, *arguments, **given)
        finally:
            _thread.loads = loads
        made.append(result)
        return result

    from_pretrained._prebake_loads = True  # type: ignore[attr-defined]
    return from_pretrained


def _constructs() -> bool:
    return getattr(_thread, "constructs", False)


def _replace_functions() -> None:
    """Replace the functions that are not replaced now: another library's patch may have undone it."""
    from transformers import PreTrainedModel, modeling_utils

    if not hasattr(PreTrainedModel.init_weights, "_prebake"):
        PreTrainedModel.init_weights = _init_weights(PreTrainedModel.init_weights)
    if hasattr(modeling_utils, "local_torch_dtype"):  # 5
        if not hasattr(modeling_utils.local_torch_dtype, "_prebake"):
            modeling_utils.local_torch_dtype = _local_torch_dtype(modeling_utils.local_torch_dtype)
    elif not hasattr(PreTrainedModel._set_default_dtype, "_prebake"):  # 4.57
        PreTrainedModel._set_default_dtype = classmethod(
            _set_default_dtype(PreTrainedModel._set_default_dtype.__func__)
        )


def _init_weights(original: Any) -> Any:
    @functools.wraps(original)
    def init_weights(self: Any) -> None:
        if not _constructs():
            original(self)

    return _marked(init_weights)


def _local_torch_dtype(original: Any) -> Any:
    @functools.wraps(original)
    @contextmanager
    def local_torch_dtype(dtype: torch.dtype, model_class_name: str | None = None) -> Iterator[None]:
        ours = _constructs() and dtype.is_floating_point  # the original refuses others
        with default_dtype(dtype) if ours else original(dtype, model_class_name):
            yield

    return _marked(local_torch_dtype)


def _set_default_dtype(original: Any) -> Any:
    @functools.wraps(original)
    def set_default_dtype(cls: Any, dtype: torch.dtype) -> torch.dtype | None:
        ours = _constructs() and dtype.is_floating_point
        return None if ours else original(cls, dtype)  # None: nothing to restore

    return _marked(set_default_dtype)


def _marked(function: Any) -> Any:
    function._prebake = True
    return function
