"""The distribution as others see it: what it exports, what importing it costs, and its tree of errors."""

from __future__ import annotations

import inspect
import re

import prebake
from helpers.runtime_fakes import python_says
from prebake import errors


def test_importing_prebake_imports_no_framework() -> None:
    """Neither do the command line and the service, until a model is loaded."""
    said = python_says(
        "import sys\n"
        "import prebake.commands.check, prebake.startup.quickstart, prebake.__main__\n"
        "import image_analyzer.command, image_analyzer.service, image_analyzer.analyzer\n"
        "heavy = {'torch', 'transformers', 'numpy', 'easyocr', 'PIL', 'safetensors', 'torchvision', 'prebake_build'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    assert said == "[]"


def test_exactly_what_is_listed_is_exported() -> None:
    assert prebake.__all__ == sorted(prebake.__all__)
    assert all(hasattr(prebake, name) for name in prebake.__all__)
    modules = {name for name in prebake.__all__ if inspect.ismodule(getattr(prebake, name))}
    assert modules == {"compat", "middleware", "quickstart", "report", "snapshot", "timeline"}
    public = {name for name, value in vars(prebake).items() if not name.startswith("_") and not inspect.ismodule(value)}
    assert public - {"annotations"} == set(prebake.__all__) - modules


def test_what_is_exported_has_a_docstring() -> None:
    for name in prebake.__all__:
        assert inspect.getdoc(getattr(prebake, name)), name


def test_every_error_is_in_the_tree_that_the_docstring_draws() -> None:
    classes = {name: value for name, value in vars(errors).items() if inspect.isclass(value)}
    assert sorted(classes) == errors.__all__
    drawn: dict[str, str | None] = {}
    above: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        found = re.match(r"^    ([│├└─ ]*)([A-Z]\w+Error)\b", line)
        if found:
            depth = len(found[1]) // 4
            del above[depth:]
            drawn[found[2]] = above[-1] if above else None
            above.append(found[2])
    assert drawn == {
        name: None if cls is errors.PrebakeError else cls.__bases__[0].__name__ for name, cls in classes.items()
    }


def test_exit_codes_are_those_of_the_tree() -> None:
    codes = {name: getattr(errors, name).exit_code for name in errors.__all__}
    assert {name for name, code in codes.items() if code == 2} == {"ConfigError", "UnknownModelError"}
    assert set(codes.values()) == {1, 2}


def test_errors_are_also_what_python_calls_them() -> None:
    assert issubclass(errors.UnknownModelError, KeyError)
    assert issubclass(errors.LoadTimeoutError, TimeoutError)
    assert str(errors.UnknownModelError('no model "x"')) == 'no model "x"'
