"""Finds the part of a project's code that a model's factory needs, so that other changes do not bake the model again.

These are the top-level modules and packages of the project that the factory's module imports, directly or through each
other, anywhere in their code. Imports by a name that is computed at run time are not seen.
"""

from __future__ import annotations

import ast
import shutil
from collections.abc import Iterator
from pathlib import Path

_IGNORED = shutil.ignore_patterns("__pycache__", "*.pyc")
_NOT_CODE = ("tests", "test", "docs")


def copy_code(module: str, project: Path, output: Path) -> tuple[str, ...]:
    """Copy what `module` needs of the project, or of its folder `src`, into `output`; returns the top-level names.

    Copies nothing if the project does not have the module: then it is of an installed package.
    """
    pending, found = [module.partition(".")[0]], dict[str, Path]()
    while pending:
        name = pending.pop()
        path = _find(name, project)
        if path is None or name in found:
            continue
        found[name] = path
        pending += sorted({imported for file in files_of(path) for imported in imports_of(file)})
    for name, path in sorted(found.items()):
        output.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.copytree(path, output / name, ignore=_IGNORED)
        else:
            shutil.copyfile(path, output / path.name)
    return tuple(sorted(found))


def _find(name: str, project: Path) -> Path | None:
    for folder in (project, project / "src"):
        if (folder / f"{name}.py").is_file():
            return folder / f"{name}.py"
        if (folder / name).is_dir() and name not in _NOT_CODE and any((folder / name).rglob("*.py")):
            return folder / name
    return None


def files_of(path: Path) -> list[Path]:
    """The Python files of a module or package."""
    return sorted(path.rglob("*.py")) if path.is_dir() else [path]


def imports_of(path: Path) -> Iterator[str]:
    """Top-level names of the absolute imports in a file; none if it is not of this Python's syntax."""
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.partition(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
            yield node.module.partition(".")[0]
