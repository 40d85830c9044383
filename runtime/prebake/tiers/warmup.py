"""Warm-up: calls a loaded model once, as `models.toml` declares, so later calls find memory, caches and imports ready.

The declaration is in the manifest, which is data: a function runs only if the application allows its module.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING

from prebake.baked.warmup import Inputs, Numbers, Zeros
from prebake.documents.messages import one_line
from prebake.errors import LoadError, PrebakeError
from prebake.families.allowed import check_allowed, find_function
from prebake.tiers.locks import FRAMEWORK_LOCK, IMPORTS, computing

if TYPE_CHECKING:
    import torch
    from torch import nn

    from prebake.tiers.loader import LoadedModel, Span

logger = logging.getLogger(__name__)


def warm_up(loaded: LoadedModel) -> bool:
    """Call the model, or the application's function with it, without gradients; False if no warm-up is declared.

    Raises ConfigError if the function is not allowed or can't be imported, and LoadError if the call fails.
    """
    declared = loaded.baked.manifest.loading.warmup
    if declared is None:
        return False
    try:
        call = _call(loaded.model, declared) if isinstance(declared, Inputs) else _function(loaded, declared)
        import torch

        # not inference_mode: tensors that a module keeps from this call could not be changed outside that mode
        with computing(), torch.no_grad():
            call()
    except PrebakeError:
        raise
    except (Exception, SystemExit) as error:  # models and functions raise anything
        raise LoadError(f"{loaded.name}: its warm-up failed: {one_line(error)}") from error
    return True


def try_to_warm_up(loaded: LoadedModel, span: Span) -> None:
    """Like `warm_up`, in a span. If it fails, logs the reason; the model can still be used."""
    if loaded.baked.manifest.loading.warmup is None:
        return
    try:
        with span("warm up", loaded.name):
            warm_up(loaded)
    except PrebakeError as error:
        logger.warning("%s (the model is used all the same)", error)


def _function(loaded: LoadedModel, name: str) -> Callable[[], object]:
    where = f"{loaded.baked.folder}: loading.warmup"
    check_allowed(name, loaded.allow, where)
    with FRAMEWORK_LOCK, IMPORTS:
        return partial(find_function(name, loaded.allow, where), loaded)


def _call(module: nn.Module, inputs: Inputs) -> Callable[[], object]:
    device = _device(module)
    arguments = {name: _argument(value, device) for name, value in inputs.values.items()}
    method: Callable[..., object] = module if inputs.method == "forward" else getattr(module, inputs.method)
    return partial(method, **arguments)


def _argument(value: object, device: torch.device) -> object:
    import torch

    if isinstance(value, Zeros):
        return torch.zeros(value.shape, dtype=getattr(torch, value.dtype), device=device)
    if isinstance(value, Numbers):
        return torch.tensor(value.values, dtype=getattr(torch, value.dtype), device=device)
    return value


def _device(module: nn.Module) -> torch.device:
    """The device of the module's first tensor."""
    import torch

    first = next(chain(module.parameters(), module.buffers()), None)
    return torch.device("cpu") if first is None else first.device
