"""Prebake's runtime: baked models, mapped at start.

::

    import prebake

    models = prebake.Models("/models")   # reads manifests only
    models.start()                       # everything, in the background, in parallel
    caption = models["caption"]          # waits, or loads it now
    caption.model, caption.processor, caption.tier

The names in `__all__` and the module `prebake.errors` are the public interface; everything else may change.
Importing this package imports no framework. Each name's module is imported when the name is first used, so a cold start
can begin reading from disk before any other import.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` for its constant would cost time
if TYPE_CHECKING:
    from prebake import snapshot
    from prebake.adopt import middleware
    from prebake.baked.manifest import Manifest
    from prebake.errors import PrebakeError
    from prebake.families import compat
    from prebake.loading.models import Models
    from prebake.loading.one_model import load
    from prebake.startup import quickstart
    from prebake.telemetry import report, timeline
    from prebake.telemetry.budget import Start
    from prebake.telemetry.drawing import startup_page
    from prebake.telemetry.services import Request
    from prebake.telemetry.status import State, Status
    from prebake.tiers.loader import LoadedModel
del TYPE_CHECKING

__all__ = [
    "LoadedModel",
    "Manifest",
    "Models",
    "PrebakeError",
    "Request",
    "Start",
    "State",
    "Status",
    "compat",
    "load",
    "middleware",
    "quickstart",
    "report",
    "snapshot",
    "startup_page",
    "timeline",
]

_HOMES = {
    "LoadedModel": "tiers.loader",
    "Manifest": "baked.manifest",
    "Models": "loading.models",
    "PrebakeError": "errors",
    "Request": "telemetry.services",
    "Start": "telemetry.budget",
    "State": "telemetry.status",
    "Status": "telemetry.status",
    "load": "loading.one_model",
    "startup_page": "telemetry.drawing",
}
"""Name → the module that defines it."""
_MODULES = {
    "compat": "families.compat",
    "middleware": "adopt.middleware",
    "quickstart": "startup.quickstart",
    "report": "telemetry.report",
    "snapshot": "snapshot",
    "timeline": "telemetry.timeline",
}
"""Name of a public module → where it is."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'prebake' has no attribute {name!r}")
    from importlib import import_module

    home = import_module(f"prebake.{_MODULES.get(name) or _HOMES[name]}")
    return globals().setdefault(name, home if name in _MODULES else getattr(home, name))
