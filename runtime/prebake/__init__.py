"""Prebake's runtime: baked models, mapped at start.

::

    import prebake

    models = prebake.Models("/models")   # reads manifests only
    models.start()                       # everything, in the background, in parallel
    caption = models["caption"]          # loads now if nobody did
    caption.model, caption.processor, caption.tier

Importing this package never imports torch or transformers; it imports its own modules when they are first named, so
that a cold start can have its disk at work before anything else (`prebake.readahead`).
"""

from __future__ import annotations

TYPE_CHECKING = False  # the one in `typing` would be an import
if TYPE_CHECKING:
    from prebake import timeline
    from prebake.errors import PrebakeError
    from prebake.loader import LoadedModel, load
    from prebake.manifest import Manifest
    from prebake.models import Models, State, Status
del TYPE_CHECKING

__all__ = ["LoadedModel", "Manifest", "Models", "PrebakeError", "State", "Status", "load", "timeline"]

_HOMES = {"PrebakeError": "errors", "LoadedModel": "loader", "load": "loader", "Manifest": "manifest",
          "Models": "models", "State": "models", "Status": "models"}  # fmt: skip
"""Name → the module that it stands in."""


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module 'prebake' has no attribute {name!r}")
    from importlib import import_module

    home = import_module(f"prebake.{_HOMES.get(name, name)}")
    return globals().setdefault(name, getattr(home, name) if name in _HOMES else home)
