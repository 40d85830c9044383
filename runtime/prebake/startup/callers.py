"""Finds the module that requests an import: `prebake.startup.deferred` gives stand-ins only to a few packages.

The requester of an import, or of a module's attribute, is the innermost frame that belongs neither to the standard
library (importlib, pkgutil and inspect act on behalf of their caller) nor to other code that forwards requests.
"""

from __future__ import annotations

import sys
from types import FrameType

_PASSED_OVER = frozenset(
    {f"{__package__}.{name}" for name in ("callers", "deferred", "standin_modules", "standins")}
    | {"transformers.utils.import_utils"}  # looks up `transformers.NAME` for its caller
)


def asker() -> str:
    """The name of the requesting module; empty for code that was compiled without a module."""
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
    """Whether the caller `depth` frames above is the requester itself, directly or through C code."""
    return sys._getframe(depth + 1).f_globals.get("__name__") == asker()
