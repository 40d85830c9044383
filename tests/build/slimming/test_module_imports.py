"""Which modules a text imports: rather too many than too few."""

from __future__ import annotations

import pytest

from prebake_build.slimming.imports import imported, imported_names, module_of


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("import a.b, c as d", {"a.b", "c"}),
        ("import a.b \\\n  , c", {"a.b", "c"}),
        ("from a import b as c", {"a", "a.b", "a.as", "a.c"}),
        ("from . import x", {"pack.sub", "pack.sub.x"}),
        ("from ..tests import x", {"pack.tests", "pack.tests.x"}),
        ("from .tests.x import (\n    y,\n    z,\n)", {"pack.sub.tests.x", "pack.sub.tests.x.y", "pack.sub.tests.x.z"}),
        ("def f():\n\tfrom a import b \\\n  , c", {"a", "a.b", "a.c"}),
        ("load('a.tests.b', \".tests.c\")", {"a.tests.b", "tests.c"}),
        ("important = 1", set()),
    ],
)
def test_names(text: str, names: set[str]) -> None:
    assert set(imported_names("pack/sub/module.py", text.encode())) == names


def test_relative_names_in_a_package_start_at_itself() -> None:
    assert set(imported_names("pack/__init__.py", b"from .tests import x")) == {"pack.tests", "pack.tests.x"}


def test_modules_are_named_as_python_names_them() -> None:
    assert [module_of(path) for path in ("a/b.py", "a/__init__.py", "c.py")] == ["a.b", "a", "c"]


def test_imports_are_followed_through_what_is_kept() -> None:
    texts = {"a.py": b"import t.x", "t/__init__.py": b"", "t/x.py": b"import t.y", "t/y.py": b"", "t/z.py": b"import a"}
    candidates = ["t/__init__.py", "t/x.py", "t/y.py", "t/z.py"]
    assert imported(candidates, ["a.py"], texts.__getitem__) == {"t/__init__.py", "t/x.py", "t/y.py"}
