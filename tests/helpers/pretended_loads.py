"""Models whose loads cost nothing, and count, fail or wait as a test tells them."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

from helpers.runtime_fakes import manifest_of, write_manifest
from prebake.baked.manifest import Loading
from prebake.baked.model import BakedModel
from prebake.loading.models import Models
from prebake.tiers.loader import LoadedModel

Load = Callable[..., LoadedModel]


class Network:
    """A model that weighs nothing."""


def loaded_of(baked: BakedModel) -> LoadedModel:
    model: Any = Network()
    return LoadedModel(name=baked.name, model=model, tier="mapped", fallback_reason=None, seconds=0.0, baked=baked)


class Loads:
    """A load that costs nothing, counts, fails or waits as it is told."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.errors: dict[str, list[BaseException]] = {}
        """Model → what its next loads raise."""
        self.hold: dict[str, threading.Event] = {}
        """Model → what its load waits for."""
        self.begun: dict[str, threading.Event] = {name: threading.Event() for name in "abc"}
        """Model → set once a load of it is under way."""

    def __call__(self, baked: BakedModel, *_: object) -> LoadedModel:
        self.count[baked.name] += 1
        self.begun[baked.name].set()
        if baked.name in self.hold:
            assert self.hold[baked.name].wait(60)
        if self.errors.get(baked.name):
            raise self.errors[baked.name].pop(0)
        return loaded_of(baked)


def models_of(root: Path, loads: Load, **loading: Loading) -> Models:
    """Models `a`, `b` and `c`, or those named with how they are loaded."""
    for name, how in (loading or dict.fromkeys("abc", Loading())).items():
        write_manifest(root, manifest_of(name, loading=how))
    models = Models(root)
    models._load = loads
    return models


def states(models: Models) -> dict[str, str]:
    return {status.name: status.state.value for status in models.status()}
