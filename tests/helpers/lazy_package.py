"""A package `lazy` that tells when it is imported, deferred for one test."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from prebake.startup import deferred

LAZY = '''
"""A package that tells when it is imported."""
import sys
sys.imports.append(__name__)
__version__ = "1.2"
__all__ = ["Shape", "area", "NUMBER"]
from lazy.errors import LazyError
NUMBER = 6
TABLE = {"a": 1}

class Meta(type):
    pass

class Shape(metaclass=Meta):
    sides = 4
    def __init__(self, width=1):
        self.width = width
    def __eq__(self, other):
        return isinstance(other, Shape) and self.width == other.width
    def __hash__(self):
        return hash(self.width)
    @staticmethod
    def unit():
        return Shape(1)
    def __class_getitem__(cls, item):
        return ("Shape of", item)

Alias = Shape

def area(shape, factor=1):
    return shape.width ** 2 * factor

def mark(function=None, *, name=None):
    def marked(function):
        def inner(*args):
            return ("marked", name, function(*args))
        inner.marked = True
        return inner
    return marked if function is None else marked(function)
'''


@contextmanager
def lazy_deferred(folder: Path, monkeypatch: pytest.MonkeyPatch, importer: str) -> Iterator[list[str]]:
    """The package, written into the folder and deferred for one importer; what of it was imported so far."""
    (folder / "lazy").mkdir()
    (folder / "lazy" / "__init__.py").write_text(LAZY)
    (folder / "lazy" / "errors.py").write_text("class LazyError(ValueError): pass\n")
    (folder / "lazy" / "part.py").write_text(
        "import sys\nsys.imports.append(__name__)\nVALUE = 7\ndef double(x): return 2 * x\n"
    )
    names: list[str] = []
    monkeypatch.setattr(sys, "imports", names, raising=False)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delenv("PREBAKE_DEFER", raising=False)
    importlib.invalidate_caches()
    finders = list(sys.meta_path)
    deferred.defer({"lazy": [importer]})
    yield names
    sys.meta_path[:] = finders
    deferred._finder.packages.pop("lazy", None)
    deferred._finder._named.clear()
    for name in [name for name in sys.modules if name.partition(".")[0] == "lazy"]:
        del sys.modules[name]
