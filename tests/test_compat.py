"""torchvision imports beside any torch, and one that works by itself is left alone."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from prebake import compat


def test_torchvision_imports_after_any_number_of_calls() -> None:
    with ThreadPoolExecutor(8) as threads:
        for call in [threads.submit(compat.torchvision_operators) for _ in range(32)]:
            call.result()
    import torchvision

    assert torchvision.__version__
    assert torch.ops.torchvision.nms


@pytest.mark.parametrize("loads", [True, False])
def test_operators_are_declared_only_where_the_library_does_not_load(
    monkeypatch: pytest.MonkeyPatch, loads: bool
) -> None:
    name = f"absent_{loads}".lower()
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(compat, "_OPERATORS", (name,))
    monkeypatch.setattr(compat, "_loads", lambda path: loads)
    compat.torchvision_operators()
    assert hasattr(torch.ops.torchvision, name) is not loads


def test_nothing_happens_where_torchvision_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(compat, "_OPERATORS", ("never_declared",))
    monkeypatch.setattr(compat, "_extension", lambda: None)
    compat.torchvision_operators()
    assert not hasattr(torch.ops.torchvision, "never_declared")
