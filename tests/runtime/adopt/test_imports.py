"""Functions run once a module's code has run, and the module looks as if nothing had happened."""

from __future__ import annotations

import importlib
import importlib.util
import logging
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prebake.adopt import imports
from prebake.adopt.imports import around_import, when_imported
from prebake.startup import deferred


@pytest.fixture(autouse=True)
def _own_finder(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A finder of the test's own; the modules that it found are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(imports, "_finder", imports._Finder())
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    yield
    for name in set(sys.modules) - before:
        if name.startswith("lib"):
            del sys.modules[name]


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package `lib_a` with a module `part`."""
    folder = tmp_path / "lib_a"
    folder.mkdir()
    (folder / "__init__.py").write_text("value = 1\n")
    (folder / "part.py").write_text("import lib_a\nvalue = lib_a.value + 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    return folder


def test_the_function_runs_after_the_module_s_code(library: Path) -> None:
    seen: list[tuple[str, int]] = []
    when_imported("lib_a.part", lambda module: seen.append((module.__name__, module.value)))
    importlib.import_module("lib_a")
    assert seen == []
    importlib.import_module("lib_a.part")
    assert seen == [("lib_a.part", 2)]


def test_a_module_that_is_imported_already_is_handed_over_at_once(library: Path) -> None:
    importlib.import_module("lib_a")
    seen: list[ModuleType] = []
    when_imported("lib_a", seen.append)
    assert seen == [sys.modules["lib_a"]]


def test_a_reloaded_module_is_handed_over_again(library: Path) -> None:
    seen: list[int] = []
    when_imported("lib_a", lambda module: seen.append(module.value))
    module = importlib.import_module("lib_a")
    (library / "__init__.py").write_text("value = 1000\n")
    importlib.reload(module)
    assert seen == [1, 1000]


def test_the_module_has_its_own_loader(library: Path) -> None:
    when_imported("lib_a", lambda module: None)
    module = importlib.import_module("lib_a")
    assert type(module.__loader__).__name__ == "SourceFileLoader"
    assert module.__spec__ is not None and module.__spec__.loader is module.__loader__


def test_a_search_without_an_import_calls_nothing(library: Path) -> None:
    seen: list[ModuleType] = []
    when_imported("lib_a", seen.append)
    spec = importlib.util.find_spec("lib_a")
    assert spec is not None and spec.origin == str(library / "__init__.py")
    assert spec.loader.get_source("lib_a") == "value = 1\n"  # type: ignore[union-attr]
    assert seen == []


def test_other_modules_are_not_touched(library: Path) -> None:
    when_imported("lib_a.other", lambda module: None)
    spec = importlib.util.find_spec("lib_a")
    assert spec is not None and type(spec.loader).__name__ == "SourceFileLoader"
    assert importlib.util.find_spec("lib_a.other") is None


def test_a_function_that_fails_does_not_break_the_import(library: Path, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[ModuleType] = []
    when_imported("lib_a", lambda module: 1 // 0)
    when_imported("lib_a", seen.append)
    with caplog.at_level(logging.WARNING):
        module = importlib.import_module("lib_a")
    assert seen == [module]
    assert caplog.messages == [
        "lib_a: is used as it is: Prebake cannot prepare it: ZeroDivisionError: integer division or modulo by zero"
    ]


def test_code_runs_inside_the_context(library: Path) -> None:
    steps: list[str] = []

    @contextmanager
    def context(name: str) -> Iterator[None]:
        steps.append(f"before {name}: {'value' in vars(sys.modules[name])}")
        yield
        steps.append(f"after {name}: {'value' in vars(sys.modules[name])}")

    around_import("lib_a", context)
    importlib.import_module("lib_a")
    assert steps == ["before lib_a: False", "after lib_a: True"]


def test_a_module_whose_code_fails_is_not_handed_over(library: Path) -> None:
    (library / "__init__.py").write_text("raise KeyError('x')\n")
    seen: list[ModuleType] = []
    when_imported("lib_a", seen.append)
    with pytest.raises(KeyError):
        importlib.import_module("lib_a")
    assert seen == []
    assert "lib_a" not in sys.modules


def test_finders_that_ask_all_others_do_not_run_in_circles(library: Path) -> None:
    class Asking:
        def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
            others: list[Any] = [*sys.meta_path]
            for finder in others:
                if finder is not self and (spec := finder.find_spec(name, path, target)):
                    return spec
            return None

    seen: list[ModuleType] = []
    when_imported("lib_a", seen.append)
    sys.meta_path.append(Asking())
    sys.meta_path.insert(0, Asking())
    assert seen == [] and importlib.import_module("lib_a") in seen


def test_a_deferred_package_is_handed_over_when_it_is_used(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(deferred, "_finder", deferred._Finder())
    seen: list[int] = []
    when_imported("lib_a", lambda module: seen.append(module.value))
    monkeypatch.delenv("PREBAKE_DEFER", raising=False)
    deferred.defer({"lib_a": (__name__.partition(".")[0],)})
    stand_in = importlib.import_module("lib_a")
    assert seen == []
    assert stand_in.value + 0 == 1
    assert seen == [1]


def test_many_threads_import_and_each_function_runs_once(library: Path) -> None:
    seen: list[ModuleType] = []
    when_imported("lib_a", seen.append)
    threads = [threading.Thread(target=importlib.import_module, args=("lib_a",)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(seen) == 1
