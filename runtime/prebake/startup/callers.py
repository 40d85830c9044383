"""Whose code is running: `prebake.startup.deferred` gives stand-ins to a few packages alone, and has to know who asks.

An import, or an attribute of a module, is asked for by the innermost frame that belongs neither to the standard library
(importlib, pkgutil and inspect ask on behalf of their caller) nor to other code that passes requests on.
"""

from __future__ import annotations

import sys
from types import FrameType

_PASSED_OVER = frozenset(
    {f"{__package__}.{name}" for name in ("callers", "deferred", "standin_modules", "standins")}
    | {"transformers.utils.import_utils"}  # looks `transformers.NAME` up for whoever asks
)


def asker() -> str:
    """The name of the module whose code asks; empty where there is none (code compiled without a module)."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = frame.f_globals.get("__name__")
        if not isinstance(name, str):
            return ""
        if name not in _PASSED_OVER and name.partition(".")[0] not in sys.stdlib_module_names:
            return name
        frame = frame.f_back
    return ""


def asks_itself(depth: int) -> bool:
    """Whether the caller `depth` frames above asks on its own behalf: C code that it runs is its own, too."""
    return sys._getframe(depth + 1).f_globals.get("__name__") == asker()
