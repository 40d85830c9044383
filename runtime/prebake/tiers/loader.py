"""One model into memory: the tiers in order, and why one was left.

`mapped` brings the module up around the file's own pages; `read` does the same around a buffer, for file systems
that cannot map; `ordinary` is the framework's own loader on the same folder. In the first two the module is
read from its structure, or else, which is slower and the same, constructed on the meta device and assigned.
A tier that fails is logged with its reason, which stays on the loaded model.
"""

from __future__ import annotations

import importlib
import logging
import os
import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from prebake.baked.integrity import Verify, check_hashes
from prebake.baked.model import BakedModel
from prebake.documents.messages import nearest, quote, reason
from prebake.errors import ConfigError, IntegrityError, LoadError, PrebakeError, TensorFileError
from prebake.families.family import Family, family_of
from prebake.telemetry import timeline

if TYPE_CHECKING:
    from torch import nn

    from prebake.weights.tensors import Opener

logger = logging.getLogger(__name__)

Tier = Literal["mapped", "read", "ordinary"]
TIERS: tuple[Tier, ...] = get_args(Tier)

_PACKAGES = {"transformers": "'prebake[transformers]'", "easyocr": "'prebake[easyocr]'", "torch": "torch"}

FRAMEWORK_LOCK = threading.RLock()
"""Held while a framework is imported or builds something: they patch global state meanwhile (torch's default
dtype, `torch.nn.init`), which another thread must neither see nor capture. Reading files goes on beside it."""


IMPORTS = threading.RLock()
"""Held while something is imported. A fork waits for it: a child cannot finish an import that another thread began."""


def _free_the_lock_in_a_forked_child() -> None:
    # another thread's hold on it would never end: the child has only the thread that forked
    if not FRAMEWORK_LOCK._is_owned():  # type: ignore[attr-defined]
        FRAMEWORK_LOCK._at_fork_reinit()  # type: ignore[attr-defined]
    IMPORTS.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=IMPORTS.acquire, after_in_parent=IMPORTS.release, after_in_child=_free_the_lock_in_a_forked_child
    )


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready for use."""

    name: str
    model: nn.Module
    """In evaluation mode. For easyocr the pair of networks, quantised where the reader's are."""
    tier: Tier
    fallback_reason: str | None
    """Why a faster tier was left, or None where the first one served."""
    seconds: float
    """What this load took, waiting for other models' construction included."""
    baked: BakedModel
    parts: Mapping[str, Any] = field(default_factory=dict)

    @property
    def processor(self) -> Any:
        """transformers: the processor, tokenizer or feature extractor. Raises LoadError where there is none."""
        return self._part("processor")

    @property
    def reader(self) -> Any:
        """easyocr: the `easyocr.Reader`. Raises LoadError for other families."""
        return self._part("reader")

    def _part(self, part: str) -> Any:
        if part not in self.parts:
            raise LoadError(f"{self.name}: a model of family {self.baked.manifest.family} baked without a {part}")
        return self.parts[part]


def check_tiers(tiers: Sequence[str]) -> tuple[Tier, ...]:
    """The tiers named, in the order given. Raises ConfigError for an unknown or missing one."""
    for tier in tiers:
        if tier not in TIERS:
            raise ConfigError(f"{quote(tier)} is not a tier ({', '.join(TIERS)}){nearest(tier, TIERS)}")
    if not tiers:
        raise ConfigError(f"no tier named: expected some of {', '.join(TIERS)}")
    return tuple(tier for tier in tiers if tier in TIERS)


def load(folder: Path, tiers: Sequence[Tier] = TIERS, device: str = "cpu") -> LoadedModel:
    """Load the baked model of a folder, onto `device` (`cpu`, `cuda`, `cuda:1`).

    Raises DocumentError or IntegrityError where the folder is not what its manifest says, ConfigError
    where its class is not installed or the device is not there, and LoadError where every tier failed.
    """
    return load_baked(BakedModel.open(folder), tiers, device)


def load_baked(
    baked: BakedModel, tiers: Sequence[Tier] = TIERS, device: str = "cpu", verify: Verify = "size"
) -> LoadedModel:
    """Like `load`, of a folder whose manifest was read before; `verify="full"` hashes every file first."""
    started = time.monotonic()
    if verify == "full":
        with timeline.span("verify", baked.name):
            check_hashes(baked.manifest, baked.folder)
    module, tier, why = module_of(baked, tiers, device)
    with FRAMEWORK_LOCK, IMPORTS, timeline.span("equip", baked.name):
        parts = _family(baked).equip(baked, module)
    return LoadedModel(
        name=baked.name,
        model=module,
        tier=tier,
        fallback_reason=why,
        seconds=time.monotonic() - started,
        baked=baked,
        parts=parts,
    )


def module_of(
    baked: BakedModel, tiers: Sequence[Tier] = TIERS, device: str = "cpu"
) -> tuple[nn.Module, Tier, str | None]:
    """The module alone, as it was baked; the tier that made it; why faster ones were left. Raises as `load`."""
    with timeline.span("check", baked.name):
        baked.manifest.check_sizes(baked.folder)
    with FRAMEWORK_LOCK, IMPORTS:
        family = _family(baked)
        _prepare(family, baked)
    return _first_tier(family, baked, tiers, device)


def _family(baked: BakedModel) -> Family:
    return family_of(baked.manifest.family, f"{baked.folder}: family")


def import_first(models: Iterable[BakedModel]) -> None:
    """Import what the families of these models need beside torch: on a cold start, while torch waits for the disk."""
    with FRAMEWORK_LOCK, IMPORTS, timeline.span("import first"):
        for baked in models:
            for module in _family(baked).without_torch:
                with suppress(ImportError):  # where it is needed after all, `prepare` says so
                    importlib.import_module(module)


def _prepare(family: Family, baked: BakedModel) -> None:
    try:
        with timeline.span("import", baked.name):
            family.prepare(baked)
            import prebake.modules.assembly
            import prebake.modules.structure
            import prebake.weights.tensors  # noqa: F401
    except ImportError as error:
        raise LoadError(
            f"{baked.name}: cannot import what its family needs: {error} "
            f"(pip install {_PACKAGES[baked.manifest.family]})"
        ) from error


def _first_tier(
    family: Family, baked: BakedModel, tiers: Sequence[Tier], device: str
) -> tuple[nn.Module, Tier, str | None]:
    reasons: list[str] = []
    last: Exception | None = None
    skeleton_failed = False
    for tier in tiers:
        if skeleton_failed and tier != "ordinary":
            continue  # mapping and reading need the same one
        try:
            ordinary = tier == "ordinary"
            module = _ordinary(family, baked, device) if ordinary else _assembled(family, baked, tier, device)
        except ConfigError:
            raise  # a class or a device that is not there is not there for the next tier either
        except Exception as error:  # frameworks raise anything: whatever it is, the next tier may do
            last = error
            skeleton_failed |= tier != "ordinary" and not isinstance(error, TensorFileError)
            reasons.append(f"{tier}: {_one_line(error)}")
            logger.warning("%s: tier %s failed: %s", baked.name, tier, _one_line(error))
            continue
        return module, tier, "; ".join(reasons) or None
    raise LoadError(f"{baked.name}: no tier could load it:\n  " + "\n  ".join(reasons)) from last


def _assembled(family: Family, baked: BakedModel, tier: Tier, device: str) -> nn.Module:
    from prebake.modules.assembly import assign

    weights = baked.manifest.weights
    open_file = _opener(tier, device)
    with timeline.span("map" if tier == "mapped" else "read", baked.name):
        tensors = {name: tensor for path in baked.weights for name, tensor in open_file(path).items()}
    if (module := _restored(family, baked, tensors)) is not None:
        return module
    with FRAMEWORK_LOCK:
        with timeline.span("skeleton", baked.name):
            module = family.skeleton(baked)
        with timeline.span("assign", baked.name):
            assign(module, tensors, weights.aliases)
    return module


def _restored(family: Family, baked: BakedModel, tensors: Mapping[str, Any]) -> nn.Module | None:
    """The module from its structure. It touches nothing that is shared: no lock is needed."""
    from prebake.modules.structure import restore, why_not

    if why := why_not(baked, family):
        logger.debug("%s: constructed: %s", baked.name, why)
        return None
    try:
        with timeline.span("structure", baked.name):
            return restore(baked, tensors, family)
    except (LoadError, IntegrityError) as error:
        logger.warning("%s: constructed, which is slower: %s", baked.name, error)
        return None


def _opener(tier: Tier, device: str) -> Opener:
    import torch

    from prebake.weights.tensors import map_tensors, read_tensors

    if device == "cpu":
        return map_tensors if tier == "mapped" else read_tensors
    from prebake.weights.devices import copies_to, send_tensors

    copies = copies_to(torch.device(device))
    if tier == "mapped":
        return lambda path: send_tensors(path, copies)
    return lambda path: {name: tensor.to(device) for name, tensor in read_tensors(path).items()}


def _ordinary(family: Family, baked: BakedModel, device: str) -> nn.Module:
    with FRAMEWORK_LOCK, timeline.span("ordinary load", baked.name):
        module = family.ordinary(baked)
        return module if device == "cpu" else module.to(device)


def _one_line(error: Exception) -> str:
    text = " ".join(reason(error).split())
    kind = "" if isinstance(error, PrebakeError) else f"{type(error).__name__}: "
    return kind + (text if len(text) <= 300 else text[:297] + "...")
