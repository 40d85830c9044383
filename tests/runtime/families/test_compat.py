"""torchvision imports beside any torch, and one that works by itself is left alone."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import pytest
import torch

from prebake.families import compat


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
    monkeypatch.setattr(compat, "_extension", lambda: "/there/_C.so")
    monkeypatch.setattr(compat, "_loads", lambda path: loads)
    compat.torchvision_operators()
    assert hasattr(torch.ops.torchvision, name) is not loads


@pytest.mark.parametrize("name", ["_C", "_C_stable"])
def test_the_compiled_part_is_found_by_the_names_it_has_had(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
) -> None:
    part = tmp_path / "torchvision" / f"{name}{EXTENSION_SUFFIXES[0]}"
    part.parent.mkdir()
    (part.parent / "__init__.py").write_text("")
    part.write_bytes(b"")
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    assert compat._extension() == str(part)
    part.unlink()
    assert compat._extension() == ""


def test_nothing_happens_where_torchvision_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "torchvision", raising=False)
    monkeypatch.setattr(compat, "_OPERATORS", ("never_declared",))
    monkeypatch.setattr(compat, "_extension", lambda: None)
    compat.torchvision_operators()
    assert not hasattr(torch.ops.torchvision, "never_declared")
