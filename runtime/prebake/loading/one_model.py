"""`prebake.load`: load one model from its folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from prebake.baked.model import BakedModel, require_signed
from prebake.families.allowed import allowed_modules
from prebake.telemetry import timeline
from prebake.tiers.loader import TIERS, LoadedModel, Loader, Tier


def load(
    folder: Path | str, tiers: Sequence[Tier] = TIERS, device: str = "cpu", *, allow: Sequence[str] = ()
) -> LoadedModel:
    """Load the baked model of a folder, onto `device` (`cpu`, `cuda`, `cuda:1`).

    `allow` lists the Python modules whose code a manifest may name, as a factory of family torch or as a warm-up, in
    addition to those in `PREBAKE_ALLOW` (comma separated): `app` stands for `app` and its submodules. Raises
    DocumentError or IntegrityError if the folder does not match its manifest (or its signature, where
    `PREBAKE_VERIFY_KEY` names a key), ConfigError if the class is not
    allowed or not installed or the device does not exist, and LoadError if every tier failed.
    """
    loader = Loader(tiers=tiers, device=device, allow=allowed_modules(allow), span=timeline.span)
    baked = BakedModel.open(Path(folder))
    require_signed(baked.folder.parent, [baked], all_of_them=False)
    return loader.load(baked)
