"""Deferred packages: nothing is imported until it is used, and then everything once, under threads too."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prebake.startup import deferred
from prebake.startup.deferred import StandIn, defer, report


def test_naming_a_package_its_parts_and_their_names_imports_nothing(imports: list[str]) -> None:
    import lazy  # type: ignore[import-not-found]
    import lazy.part  # type: ignore[import-not-found]
    from lazy import NUMBER, Shape, area
    from lazy.part import double

    assert all(isinstance(name, StandIn) for name in (NUMBER, Shape, area, double, Shape.unit, lazy.part.VALUE))
    assert isinstance(lazy, ModuleType)
    assert imports == []
    assert report()["lazy"] is None


def test_the_first_use_imports_every_part_that_was_named_once(imports: list[str]) -> None:
    import lazy.part
    from lazy import NUMBER

    assert NUMBER + 1 == 7
    assert imports == ["lazy", "lazy.part"]
    assert (NUMBER + 1, lazy.part.VALUE) == (7, 7)
    assert imports == ["lazy", "lazy.part"]
    assert report()["lazy"] == "lazy.NUMBER"


def test_afterwards_the_module_that_was_named_before_gives_the_real_things(imports: list[str]) -> None:
    import lazy as before

    assert before.NUMBER + 1
    import lazy as after

    assert after is sys.modules["lazy"]
    assert type(after) is ModuleType
    assert before.Shape is after.Shape
    assert not isinstance(before.NUMBER, StandIn)


def test_setting_a_name_sets_it_on_the_real_thing(imports: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    import lazy
    from lazy import Shape

    Shape.sides = 5
    assert lazy.Shape(1).sides == 5
    monkeypatch.setattr(lazy, "NUMBER", 60)
    assert sys.modules["lazy"].NUMBER == 60
    monkeypatch.undo()


def test_setting_a_name_of_a_package_that_is_deferred_sets_it_on_the_real_one(imports: list[str]) -> None:
    import lazy

    lazy.NUMBER = 60
    assert sys.modules["lazy"].NUMBER == 60
    assert lazy.NUMBER == 60


def test_names_and_parts_that_do_not_exist_are_missing(imports: list[str]) -> None:
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'lazy\.absent'$"):
        importlib.import_module("lazy.absent")
    assert importlib.util.find_spec("lazy.absent") is None
    assert importlib.util.find_spec("lazy.part") is not None
    import lazy

    absent = lazy.absent
    assert imports == []
    with pytest.raises(AttributeError, match="absent"):
        absent()


def test_a_star_import_imports(imports: list[str]) -> None:
    names: dict[str, Any] = {}
    exec("from lazy import *", names)
    assert names["NUMBER"] + 1 == 7


def test_a_package_that_fails_to_import_fails_when_it_is_used_each_time(imports: list[str], tmp_path: Path) -> None:
    (tmp_path / "lazy" / "__init__.py").write_text("raise ImportError('a library is missing')")
    from lazy import Shape

    for _ in range(2):
        with pytest.raises(ImportError, match=r"^a library is missing$"):
            Shape()


def test_first_use_from_many_threads_imports_once(imports: list[str], tmp_path: Path) -> None:
    """Some use the package while another's first use still imports it."""
    (tmp_path / "lazy" / "part.py").write_text(
        "import sys, time\nsys.imports.append(__name__)\ntime.sleep(0.2)\nVALUE = 7\n"
    )
    import lazy
    import lazy.part
    from lazy import area
    from lazy.part import VALUE

    line = threading.Barrier(12, timeout=60)
    found: list[Any] = []

    def use(number: int) -> None:
        line.wait()
        uses: list[Callable[[], Any]] = [
            lambda: VALUE + 0, lambda: lazy.part.VALUE + 0, lambda: area(lazy.Shape(1)) + 6, lambda: lazy.NUMBER + 1,
        ]  # fmt: skip
        try:
            found.append(uses[number % 4]())
        except BaseException as error:
            found.append(error)

    threads = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert found == [7] * 12
    assert imports == ["lazy", "lazy.part"]


def test_a_module_that_is_being_imported_may_use_a_package_that_another_thread_resolves(
    imports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one holds its own module's lock and wants the package; the package's import wants that module."""
    monkeypatch.setattr(deferred._finder.packages["lazy"], "importers", frozenset({__name__, "outer"}))
    (tmp_path / "outer.py").write_text(
        "import sys\nfrom lazy import NUMBER\nsys.importing.set()\nsys.resolving.wait(30)\nRESULT = NUMBER + 1\n"
    )
    (tmp_path / "lazy" / "part.py").write_text("import sys\nsys.resolving.set()\nimport outer\nVALUE = 7\n")
    import lazy.part

    importing, resolving = threading.Event(), threading.Event()
    sys.importing, sys.resolving = importing, resolving  # type: ignore[attr-defined]
    found: list[Any] = []
    first = threading.Thread(target=lambda: found.append(importlib.import_module("outer").RESULT), daemon=True)
    first.start()
    assert importing.wait(30)
    second = threading.Thread(target=lambda: found.append(lazy.part.VALUE + 0), daemon=True)
    second.start()
    first.join(20)
    second.join(20)
    sys.modules.pop("outer", None)
    del sys.importing, sys.resolving  # type: ignore[attr-defined]
    assert sorted(found) == [7, 7]


def test_a_module_that_is_named_while_another_thread_resolves_its_package_is_the_real_one(imports: list[str]) -> None:
    """The package was deferred when the import system asked where the module is, and is not when it asks for it."""
    spec = importlib.util.find_spec("lazy")
    assert spec is not None
    deferred._finder.packages["lazy"].resolve(by="another thread")
    loaded = importlib._bootstrap._load(spec)  # type: ignore[attr-defined]
    assert type(loaded) is type(sys.modules["lazy"]) is ModuleType
    assert loaded.NUMBER == 6


def test_switched_off_it_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREBAKE_DEFER", "0")
    before = list(sys.meta_path), dict(deferred._finder.packages)
    defer({"wave": []})
    assert (list(sys.meta_path), dict(deferred._finder.packages)) == before


def test_packages_that_are_imported_or_not_installed_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREBAKE_DEFER", raising=False)
    finders = list(sys.meta_path)
    defer({"json": [], "no_such_package": [], "prebake": []})
    sys.meta_path[:] = finders
    assert not {"json", "no_such_package", "prebake"} & deferred._finder.packages.keys()
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("no_such_package")
