"""numba: the functions that the image's build compiled; `prebake scan` sees which are compiled.

Each entry of `prebake.startup.compiled` is one line of the file that stands beside that of `PREBAKE_OBSERVE`. A line
that begins with `#` says what can't be compiled in a build.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from prebake.adopt import ENV_OBSERVE, claims
from prebake.adopt.loads import append
from prebake.startup import compiled

logger = logging.getLogger(__name__)

SEEN = ".numba"
"""Appended to the name of the file of loads."""
_INSTALLED = frozenset({"site-packages", "dist-packages"})


def install(module: ModuleType) -> None:
    """Use the image's compiled functions; while observing, write down what is compiled."""
    if observed := os.environ.get(ENV_OBSERVE):
        _observe(Path(observed + SEEN))
        return
    problem = compiled.use(module.config.CACHE_DIR)
    if problem is not None and claims.claim("numba"):
        logger.warning("%s", problem)


def _observe(seen: Path) -> None:
    """Write down each function that numba looks for in its cache: it compiles what it does not find there."""
    from numba.core import caching

    if hasattr(caching.Cache.load_overload, "__wrapped__"):
        return
    original, known = caching.Cache.load_overload, set[str]()

    @functools.wraps(original)
    def load_overload(cache: Any, types: Any, *arguments: Any, **named: Any) -> Any:
        if isinstance(cache, caching.FunctionCache) and (line := _line(cache._py_func, types)) not in known:
            known.add(line)
            append(str(seen), f"{line}\n")
        return original(cache, types, *arguments, **named)

    caching.Cache.load_overload = load_overload


def _line(function: Any, types: Any) -> str:
    """The entry of a function, or why there is none."""
    from prebake.startup.signatures import encode

    module, name, file = function.__module__, function.__qualname__, Path(function.__code__.co_filename)
    own = _INSTALLED.isdisjoint(file.parts) and file.is_relative_to(Path.cwd())
    spec = getattr(sys.modules.get(module), "__spec__", None)
    initializing = getattr(spec, "_initializing", False)  # then the signatures stand in the code
    text = "" if initializing else encode(types)
    if module == "__main__":
        why = "it is defined in the program itself: move it into a module that the program imports"
    elif "<" in name:
        why = "it is defined in a function"
    elif text is None:
        why = f"the types of its arguments can't be written down: {types}"
    else:
        return compiled.Entry(module=module, function=None if initializing else name, types=text, own=own).line
    return f"# {file}: {name} is compiled at each start: {why}"
