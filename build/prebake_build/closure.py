"""The modules that decide the bytes of baked models, copied out of the source tree for the Dockerfile.

They are those that `prebake_build.stage` imports, directly or not, at any depth of any function, and those
it names as strings (the worker it starts). All others may change without baking a model again: the stages
that bake see only what is copied here, and are cached by contents.

Run as a script, by whatever Python the base image has, with nothing installed::

    python3 build/prebake_build/closure.py SOURCE OUTPUT

OUTPUT gets `runtime/` and `build/`, each installable. `prebake/__init__.py` is left empty there: it imports
the loader of many models for users' convenience, and no bake asks for that.
"""

from __future__ import annotations

import ast
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = "prebake_build.stage"
HALVES = {"prebake": "runtime", "prebake_build": "build"}
"""Package → the folder of its distribution."""
EMPTY = "runtime/prebake/__init__.py"


def closure(source: Path) -> tuple[str, ...]:
    """Paths of the modules, relative to `source`, sorted."""
    found: set[str] = set()
    waiting = [ROOT]
    while waiting:
        module = waiting.pop()
        path = _path(source, module)
        if path is None or path in found:
            continue
        found.add(path)
        waiting.append(module.rpartition(".")[0])
        if path != EMPTY:
            waiting += _named(ast.parse((source / path).read_text(encoding="utf-8")))
    return tuple(sorted(found))


def _path(source: Path, module: str) -> str | None:
    """The file of a module of one of the two packages, or None for anything else."""
    half = HALVES.get(module.partition(".")[0])
    if half is None:
        return None
    base = f"{half}/{module.replace('.', '/')}"
    return next((path for path in (f"{base}/__init__.py", f"{base}.py") if (source / path).is_file()), None)


def _named(node: ast.AST) -> Iterator[str]:
    """Modules that the code may import: what import statements and strings name, but for type checkers only."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            yield child.module
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Constant) and isinstance(child.value, str):
            yield child.value
        yield from _named(child)


def copy(source: Path, output: Path) -> None:
    """Copy the modules and what it takes to install them into `output`."""
    for half in HALVES.values():
        (output / half).mkdir(parents=True)
        for name in ("pyproject.toml", "LICENSE"):
            shutil.copyfile(source / half / name, output / half / name)
        (output / half / "README.md").touch()
    for path in closure(source):
        (output / path).parent.mkdir(parents=True, exist_ok=True)
        if path == EMPTY:
            (output / path).touch()
        else:
            shutil.copyfile(source / path, output / path)


if __name__ == "__main__":
    copy(Path(sys.argv[1]), Path(sys.argv[2]))
