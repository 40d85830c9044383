"""One model into memory: the tiers in order, and why one was left.

`mapped` brings the module up around the file's own pages; `read` does the same around a buffer, for file systems
that cannot map; `ordinary` is the framework's own loader on the same folder. In the first two the module is
read from its structure, or else, which is slower and the same, constructed on the meta device and assigned.
A tier that fails is logged with its reason, which stays on the loaded model.

What decides the bytes of a baked model goes through here at bake, so this imports no telemetry: whoever wants to know
where the time goes gives the loader a `span`.
"""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, get_args

from prebake.baked.integrity import Verify, check_hashes
from prebake.baked.model import BakedModel
from prebake.documents.messages import nearest, one_line, quote
from prebake.errors import ConfigError, IntegrityError, LoadError, TensorFileError
from prebake.families.family import Family, family_of
from prebake.tiers.locks import FRAMEWORK_LOCK, IMPORTS
from prebake.tiers.warmup import warm_up

if TYPE_CHECKING:
    from torch import nn

    from prebake.weights.tensors import Opener

logger = logging.getLogger(__name__)

Tier = Literal["mapped", "read", "ordinary"]
TIERS: tuple[Tier, ...] = get_args(Tier)

Span = Callable[[str, str | None], AbstractContextManager[object]]
"""Told of each step: its name, and the model's, or None where the step is for several. `timeline.span` is one."""

_PACKAGES = {"transformers": "'prebake[transformers]'", "easyocr": "'prebake[easyocr]'", "torch": "torch"}


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
    allow: tuple[str, ...] = ()
    """Modules whose code the manifest may name, their submodules included."""

    @property
    def processor(self) -> Any:
        """transformers: the processor, tokenizer or feature extractor. Raises LoadError where there is none."""
        return self._part("processor")

    @property
    def reader(self) -> Any:
        """easyocr: the `easyocr.Reader`. Raises LoadError for other families."""
        return self._part("reader")

    def warm_up(self) -> bool:
        """Call the model once with the warm-up that `models.toml` declares; False where it declares none.

        Raises ConfigError where the function that it names is not allowed or cannot be imported, LoadError where the
        call fails.
        """
        return warm_up(self)

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


def unobserved(step: str, model: str | None = None) -> AbstractContextManager[object]:
    """The span of whoever does not want to know."""
    return nullcontext()


def import_first(models: Iterable[BakedModel], span: Span = unobserved) -> None:
    """Import what the families of these models need beside torch: on a cold start, while torch waits for the disk."""
    with FRAMEWORK_LOCK, IMPORTS, span("import first", None):
        for baked in models:
            for module in family_of(baked.manifest.family, f"{baked.folder}: family").without_torch:
                with suppress(ImportError):  # where it is needed after all, `prepare` says so
                    importlib.import_module(module)


@dataclass(frozen=True, kw_only=True)
class Loader:
    """How models come into memory. It keeps nothing between loads: one serves all models and threads.

    Each method raises DocumentError or IntegrityError where the folder is not what its manifest says; ConfigError where
    its class is not allowed or not installed, or the device is not there; and LoadError where every tier failed.
    """

    tiers: Sequence[Tier] = TIERS
    """In the order in which they are tried."""
    device: str = "cpu"
    """Where the weights go: `cpu`, `cuda`, `cuda:1`."""
    verify: Verify = "size"
    """`full` hashes every file before a load."""
    allow: tuple[str, ...] = ()
    """Modules whose code a manifest may name, their submodules included."""
    span: Span = unobserved

    def load(self, baked: BakedModel) -> LoadedModel:
        """The model, ready for use."""
        started = time.monotonic()
        if self.verify == "full":
            with self.span("verify", baked.name):
                check_hashes(baked.manifest, baked.folder)
        module, tier, why = self.module(baked)
        with FRAMEWORK_LOCK, IMPORTS, self.span("equip", baked.name):
            parts = self._family(baked).equip(baked, module)
        return LoadedModel(
            name=baked.name,
            model=module,
            tier=tier,
            fallback_reason=why,
            seconds=time.monotonic() - started,
            baked=baked,
            parts=parts,
            allow=self.allow,
        )

    def module(self, baked: BakedModel) -> tuple[nn.Module, Tier, str | None]:
        """The module alone, as it was baked; the tier that made it; why faster ones were left."""
        with self.span("check", baked.name):
            baked.manifest.check_sizes(baked.folder)
        with FRAMEWORK_LOCK, IMPORTS:
            family = self._family(baked)
            self._prepare(family, baked)
        return self._first_tier(family, baked)

    def _family(self, baked: BakedModel) -> Family:
        return family_of(baked.manifest.family, f"{baked.folder}: family", self.allow)

    def _prepare(self, family: Family, baked: BakedModel) -> None:
        try:
            with self.span("import", baked.name):
                family.prepare(baked)
                import prebake.modules.assembly
                import prebake.modules.structure
                import prebake.weights.tensors  # noqa: F401
        except ImportError as error:
            raise LoadError(
                f"{baked.name}: cannot import what its family needs: {error} "
                f"(pip install {_PACKAGES[baked.manifest.family]})"
            ) from error

    def _first_tier(self, family: Family, baked: BakedModel) -> tuple[nn.Module, Tier, str | None]:
        reasons: list[str] = []
        last: Exception | None = None
        skeleton_failed = False
        for tier in self.tiers:
            if skeleton_failed and tier != "ordinary":
                continue  # mapping and reading need the same one
            try:
                ordinary = tier == "ordinary"
                module = self._ordinary(family, baked) if ordinary else self._assembled(family, baked, tier)
            except ConfigError:
                raise  # a class or a device that is not there is not there for the next tier either
            except Exception as error:  # frameworks raise anything: whatever it is, the next tier may do
                last = error
                skeleton_failed |= tier != "ordinary" and not isinstance(error, TensorFileError)
                reasons.append(f"{tier}: {one_line(error)}")
                logger.warning("%s: tier %s failed: %s", baked.name, tier, one_line(error))
                continue
            return module, tier, "; ".join(reasons) or None
        raise LoadError(f"{baked.name}: no tier could load it:\n  " + "\n  ".join(reasons)) from last

    def _assembled(self, family: Family, baked: BakedModel, tier: Tier) -> nn.Module:
        from prebake.modules.assembly import assign

        weights = baked.manifest.weights
        open_file = self._opener(tier)
        with self.span("map" if tier == "mapped" else "read", baked.name):
            tensors = {name: tensor for path in baked.weights for name, tensor in open_file(path).items()}
        if (module := self._restored(family, baked, tensors)) is not None:
            return module
        with FRAMEWORK_LOCK:
            with self.span("skeleton", baked.name):
                module = family.skeleton(baked)
            with self.span("assign", baked.name):
                assign(module, tensors, weights.aliases)
        return module

    def _restored(self, family: Family, baked: BakedModel, tensors: Mapping[str, Any]) -> nn.Module | None:
        """The module from its structure. It touches nothing that is shared: no lock is needed."""
        from prebake.modules.structure import restore, why_not

        if why := why_not(baked, family):
            logger.debug("%s: constructed: %s", baked.name, why)
            return None
        try:
            with self.span("structure", baked.name):
                return restore(baked, tensors, family)
        except (LoadError, IntegrityError) as error:
            logger.warning("%s: constructed, which is slower: %s", baked.name, error)
            return None

    def _opener(self, tier: Tier) -> Opener:
        import torch

        from prebake.weights.tensors import map_tensors, read_tensors

        if self.device == "cpu":
            return map_tensors if tier == "mapped" else read_tensors
        from prebake.weights.devices import copies_to, send_tensors

        device = torch.device(self.device)
        copies = copies_to(device)
        if tier == "mapped":
            return lambda path: send_tensors(path, copies)
        return lambda path: {name: tensor.to(device) for name, tensor in read_tensors(path).items()}

    def _ordinary(self, family: Family, baked: BakedModel) -> nn.Module:
        with FRAMEWORK_LOCK, IMPORTS, self.span("ordinary load", baked.name):
            module = family.ordinary(baked)
            return module if self.device == "cpu" else module.to(self.device)
