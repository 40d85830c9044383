"""One model by its folder: what `prebake.load` is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prebake.baked.model import BakedModel
from prebake.families.allowed import allowed_modules
from prebake.telemetry import timeline
from prebake.tiers.loader import TIERS, LoadedModel, Loader, Tier


def load(folder: Path, tiers: Sequence[Tier] = TIERS, device: str = "cpu", *, allow: Sequence[str] = ()) -> LoadedModel:
    """Load the baked model of a folder, onto `device` (`cpu`, `cuda`, `cuda:1`).

    `allow` names the modules whose code a manifest may name, as factory of the family torch or as warm-up, beside those
    of the environment's `PREBAKE_ALLOW` (comma separated): `app` stands for `app` and its submodules. Raises
    DocumentError or IntegrityError where the folder is not what its manifest says, ConfigError where its class is not
    allowed or not installed or the device is not there, and LoadError where every tier failed.
    """
    loader = Loader(tiers=tiers, device=device, allow=allowed_modules(allow), span=timeline.span)
    return loader.load(BakedModel.open(folder))
