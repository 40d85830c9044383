"""What manifests name as `helpers.warmups:NAME`: functions that warm up, and a network that keeps its arguments."""

from __future__ import annotations

import os
import sys
import threading
from typing import Any

import torch
from torch import nn

CALLS: list[tuple[Any, bool]] = []
"""What `note` was called with, and whether gradients were on."""
BEGUN, RELEASE = threading.Event(), threading.Event()
ENDED: list[str] = []
MODELS: dict[str, Any] = {}
"""Which `asking` asks for `b`."""


def note(loaded: Any) -> None:
    CALLS.append((loaded, torch.is_grad_enabled()))


def failing(loaded: Any) -> None:
    raise RuntimeError("no picture\nat hand")


def leaving(loaded: Any) -> None:
    sys.exit(3)


def waiting(loaded: Any) -> None:
    """Until RELEASE."""
    BEGUN.set()
    assert RELEASE.wait(60)
    ENDED.append(loaded.name)


def forking(loaded: Any) -> None:
    """As a pool of processes does."""
    child = os.fork()
    if not child:
        os._exit(7)
    ENDED.append(str(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))


def asking(loaded: Any) -> None:
    ENDED.append(MODELS["models"]["b"].name)


class Caching(nn.Module):
    """Keeps a tensor of its first call and changes it in later ones, as caches of keys and values are."""

    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Linear(3, 2)
        self.called: list[tuple[str, dict[str, Any]]] = []
        self.sum: torch.Tensor | None = None

    def forward(self, **inputs: Any) -> torch.Tensor:
        self.called.append(("forward", inputs))
        if self.sum is None:
            self.sum = torch.zeros(1, 3)
        scores: torch.Tensor = self.out(self.sum.add_(1))
        return scores

    def generate(self, **inputs: Any) -> None:
        self.called.append(("generate", inputs))


def caching() -> nn.Module:
    return Caching()
