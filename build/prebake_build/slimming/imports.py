"""Which modules others import, read from their text: what a rule may not remove.

Regular expressions in place of the parser: 90 MB of modules take seconds so. They also find statements inside of
functions and docstrings, and dotted names in strings (`import_module("a.b")`): that keeps more, never less.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import PurePosixPath

_STATEMENT = re.compile(
    rb"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+import[ \t]+(\([^)]*\)|(?:[^\n\\]|\\\n)*)"
    rb"|import[ \t]+((?:[^\n\\]|\\\n)+))",
    re.MULTILINE,
)
_STRING = re.compile(rb"""["']\.?([A-Za-z_]\w*(?:\.\w+)+)["']""")
_NAME = re.compile(rb"[\w.]+")


def module_of(path: str) -> str:
    """`a/b/__init__.py` is `a.b`."""
    parts = PurePosixPath(path).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imported_names(path: str, text: bytes) -> Iterator[str]:
    """Dotted names of modules that the module at `path` may import; of `from a import b`, both `a` and `a.b`."""
    package = PurePosixPath(path).parent.parts
    for base, names, modules in _STATEMENT.findall(text):
        if modules:
            for part in modules.split(b","):
                if found := _NAME.match(part.strip()):
                    yield found[0].decode()
            continue
        level = len(base) - len(base.lstrip(b"."))
        rest = base.decode().strip(".")
        start = ".".join(package[: len(package) - level + 1]) if level else ""
        origin = f"{start}.{rest}".strip(".")
        yield origin
        for name in _NAME.findall(names):
            yield f"{origin}.{name.decode()}"
    for name in _STRING.findall(text):
        yield name.decode()


def imported(candidates: Iterable[str], others: Iterable[str], read: Callable[[str], bytes]) -> set[str]:
    """Those of the modules `candidates` that the modules `others` import, with the packages that they are in, and what
    these import in turn. Modules are paths relative to site-packages; `read` gives their text.
    """
    modules = {module_of(path): path for path in candidates}
    kept: set[str] = set()
    waiting = list(others)
    while waiting:
        path = waiting.pop()
        for name in imported_names(path, read(path)):
            for found in _with_parents(name):
                target = modules.get(found)
                if target is not None and target not in kept:
                    kept.add(target)
                    waiting.append(target)
    return kept


def _with_parents(name: str) -> Iterator[str]:
    while name:
        yield name
        name = name.rpartition(".")[0]
