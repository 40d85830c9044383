"""Prebake's runtime: baked models, mapped at start.

::

    import prebake

    models = prebake.Models("/models")   # reads manifests only
    models.start()                       # everything, in the background, in parallel
    caption = models["caption"]          # loads now if nobody did
    caption.model, caption.processor, caption.tier

Importing this package never imports torch or transformers.
"""

from __future__ import annotations

from prebake import timeline
from prebake.errors import PrebakeError
from prebake.loader import LoadedModel, load
from prebake.manifest import Manifest
from prebake.models import Models, State, Status

__all__ = ["LoadedModel", "Manifest", "Models", "PrebakeError", "State", "Status", "load", "timeline"]
