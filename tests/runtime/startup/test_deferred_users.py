"""Code that is not on the list of importers gets the real package, whether or not a framework named it before."""

from __future__ import annotations

import importlib
import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prebake.startup.deferred import StandIn, report

User = Callable[[str], Any]
_NUMBERS = itertools.count()


@pytest.fixture(params=["named before", "named first"])
def user(request: pytest.FixtureRequest, imports: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> User:
    """Runs code as a module of its own; `RESULT` of it. A framework named the package before, or nobody did."""
    if request.param == "named before":
        from lazy import Shape  # type: ignore[import-not-found]
        from lazy.part import VALUE  # type: ignore[import-not-found]

        assert isinstance(Shape, StandIn)
        assert isinstance(VALUE, StandIn)
        assert imports == []

    def run(code: str) -> Any:
        name = f"app{next(_NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(code)
        importlib.invalidate_caches()
        monkeypatch.delitem(sys.modules, name, raising=False)
        return importlib.import_module(name).RESULT

    return run


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("import lazy\nRESULT = hasattr(lazy, 'nope'), hasattr(lazy, 'NUMBER')", (False, True)),
        ("try: from lazy.part import missing\nexcept ImportError as error: RESULT = error.name", "lazy.part"),
        ("try: from lazy import missing\nexcept ImportError as error: RESULT = error.name", "lazy"),
        ("import inspect\nfrom lazy import Shape\nRESULT = inspect.isclass(Shape)", True),
        ("import inspect, lazy\nRESULT = inspect.isclass(lazy.Shape), inspect.ismodule(lazy)", (True, True)),
        ("import functools, lazy\n@functools.singledispatch\ndef f(x): return 0\n"
         "@f.register(lazy.Shape)\ndef _(x): return 1\nRESULT = f(lazy.Shape()), f(1)", (1, 0)),
        ("import functools\nfrom lazy import Shape\n@functools.singledispatch\ndef f(x): return 0\n"
         "@f.register\ndef _(x: Shape): return 1\nRESULT = f(Shape()), f(1)", (1, 0)),
        ("import lazy.part as part\nRESULT = part.VALUE, hasattr(part, 'nope')", (7, False)),
        ("import lazy.part\nRESULT = type(lazy.part.double).__name__", "function"),
        ("import importlib\nlazy = importlib.import_module('lazy')\nRESULT = isinstance(lazy.Shape, type)", True),
        ("import importlib\npart = importlib.import_module('.part', 'lazy')\nRESULT = hasattr(part, 'nope')", False),
        ("import sys, lazy.part\nRESULT = hasattr(sys.modules['lazy.part'], 'nope')", False),
        ("import lazy\nRESULT = 'NUMBER' in dir(lazy), 'nope' in dir(lazy)", (True, False)),
        ("import lazy\nRESULT = vars(lazy)['NUMBER'], 'nope' in lazy.__dict__", (6, False)),
        ("import lazy\nRESULT = lazy.__doc__", "A package that tells when it is imported."),
        ("import lazy\nRESULT = (lazy.__name__, lazy.__version__, hasattr(lazy, '__nope__'))", ("lazy", "1.2", False)),
        ("import lazy, inspect\nRESULT = sorted(n for n, _ in inspect.getmembers(lazy, inspect.isclass))",
         ["Alias", "LazyError", "Meta", "Shape"]),
        ("import lazy, inspect\nRESULT = inspect.getsource(lazy.area)",
         "def area(shape, factor=1):\n    return shape.width ** 2 * factor\n"),
        ("from lazy.part import *\nRESULT = VALUE, double(4)", (7, 8)),
        ("import pkgutil, lazy\nRESULT = [found.name for found in pkgutil.iter_modules(lazy.__path__)]",
         ["errors", "part"]),
        ("import pkgutil\nRESULT = isinstance(pkgutil.resolve_name('lazy:Shape'), type)", True),
        ("import pickle, lazy\nRESULT = pickle.loads(pickle.dumps(lazy.Shape)) is lazy.Shape", True),
        ("import pickle, lazy, lazy.part\nRESULT = pickle.loads(pickle.dumps(lazy.part.double)) is lazy.part.double",
         True),
        ("import copy, lazy\nRESULT = copy.deepcopy({'module': lazy.Shape})['module'] is lazy.Shape", True),
        ("import typing, lazy\ndef f(x: 'lazy.Shape'): pass\n"
         "RESULT = typing.get_type_hints(f)['x'] is lazy.Shape", True),
        ("import lazy\ntry: raise lazy.LazyError\nexcept lazy.LazyError: RESULT = True", True),
        ("import sys, lazy\nlazy.NUMBER = 60\n"
         "RESULT = vars(sys.modules['lazy'])['NUMBER'], lazy.area.__globals__['NUMBER']", (60, 60)),
        ("import lazy\nfrom unittest import mock\n"
         "with mock.patch('lazy.part.VALUE', 70): RESULT = lazy.part.VALUE", 70),
        ("import lazy\nRESULT = eval('hasattr(lazy, \"nope\")', {'lazy': lazy})", False),
    ],
)  # fmt: skip
def test_whatever_it_does_it_finds_the_real_package(user: User, code: str, expected: object) -> None:
    assert user(code) == expected
    assert report()["lazy"]
    assert type(sys.modules["lazy"]) is ModuleType


def test_an_import_statement_imports_for_those_who_want_its_effects_alone(user: User, imports: list[str]) -> None:
    assert user("import lazy.part\nRESULT = None") is None
    assert imports == ["lazy", "lazy.part"]


def test_a_package_that_cannot_be_imported_raises_its_own_error(user: User, tmp_path: Path) -> None:
    """At the import statement; up to Python 3.12 at the first use, where a framework named the package before."""
    (tmp_path / "lazy" / "__init__.py").write_text("raise ImportError('a library is missing')")
    code = "try:\n    import lazy\n    lazy.NUMBER\nexcept ImportError as error: RESULT = str(error)"
    assert user(code) == user(code) == "a library is missing"


def test_each_module_is_run_once(user: User, imports: list[str]) -> None:
    assert user("import lazy.part, lazy\nfrom lazy import part\nfrom lazy.part import VALUE\nRESULT = VALUE") == 7
    assert imports == ["lazy", "lazy.part"]


def test_asking_where_a_package_is_imports_nothing(user: User, imports: list[str]) -> None:
    code = "import importlib.util as util\nRESULT = [util.find_spec(name) is not None for name in ('lazy', 'wave')]"
    assert user(code) == [True, True]
    assert imports == []


def test_its_files_are_found(user: User) -> None:
    code = (
        "import pkgutil\nfrom importlib import resources\n"
        "RESULT = pkgutil.get_data('lazy', 'part.py')[:10], (resources.files('lazy') / 'part.py').read_text()[:10]"
    )
    assert user(code) == (b"import sys", "import sys")


def test_those_who_look_at_all_modules_import_nothing(user: User, imports: list[str]) -> None:
    code = (
        "import inspect, unittest, warnings\n"
        "def f(): pass\n"
        "with unittest.TestCase().assertWarns(UserWarning): warnings.warn('x')\n"
        "RESULT = inspect.getmodule(eval('lambda: 0', {})), inspect.getmodule(f).__name__.startswith('app')"
    )
    assert user(code) == (None, True)
    assert imports == []


def test_what_it_holds_since_before_is_the_real_module_in_all_but_identity(imports: list[str]) -> None:
    import lazy

    users: dict[str, Any] = {"__name__": "app"}
    exec("def look(module): return hasattr(module, 'nope'), module.NUMBER, module.__spec__", users)
    assert sys.modules["lazy"] is lazy
    looked = users["look"](lazy)
    assert sys.modules["lazy"] is not lazy
    assert looked == (False, 6, sys.modules["lazy"].__spec__)
    assert repr(lazy) == repr(sys.modules["lazy"])
    assert vars(lazy) is vars(sys.modules["lazy"])
    del lazy.NUMBER
    assert not hasattr(sys.modules["lazy"], "NUMBER")


def test_a_function_that_uses_a_module_named_before_can_be_sent_elsewhere(imports: list[str]) -> None:
    import pickle

    import cloudpickle  # type: ignore[import-untyped]
    import lazy

    users: dict[str, Any] = {"__name__": "__main__", "lazy": lazy}
    exec("def area(width): return lazy.area(lazy.Shape(width))", users)
    assert pickle.loads(cloudpickle.dumps(users["area"]))(3) == 9
    assert pickle.loads(cloudpickle.dumps(lazy)) is sys.modules["lazy"]


def test_the_report_names_the_importer_that_gets_the_real_one(imports: list[str], tmp_path: Path) -> None:
    (tmp_path / "an_app.py").write_text("import lazy.part")
    importlib.import_module("an_app")
    del sys.modules["an_app"]
    assert report()["lazy"] == "import lazy in an_app"
