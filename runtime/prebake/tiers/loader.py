"""Loads one model: tries the tiers in order and records why a tier failed.

`mapped` builds the module on the file's memory-mapped pages; `read` does the same on a buffer, for file systems without
mmap; `ordinary` is the framework's own loader on the same folder. The first two restore the module from its structure;
without one, they construct it on the meta device and assign the tensors, which is slower and gives the same module.
A tier that fails is logged with its reason, which the loaded model keeps.

The build proves baked models with this module, so it imports no telemetry: a caller that measures passes a `span`.
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
from prebake.tiers import drift
from prebake.tiers.locks import FRAMEWORK_LOCK, IMPORTS
from prebake.tiers.warmup import warm_up

if TYPE_CHECKING:
    from torch import nn

    from prebake.weights.tensors import Opener

logger = logging.getLogger(__name__)

Tier = Literal["mapped", "read", "ordinary"]
TIERS: tuple[Tier, ...] = get_args(Tier)

Span = Callable[[str, str | None], AbstractContextManager[object]]
"""Makes a context manager around each step, from the step's name and the model's name (None if the step is for several
models). `timeline.span` is one."""


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A model that is ready for use."""

    name: str
    model: nn.Module
    """In evaluation mode. For easyocr: both networks as one module, quantised if the reader's are. For
    sentence-transformers: the `SentenceTransformer`. For diffusers: the networks as one module, by their names."""
    tier: Tier
    fallback_reason: str | None
    """Why faster tiers failed, or None if the first tier succeeded."""
    seconds: float
    """Duration of the load, including waits for other models' construction."""
    baked: BakedModel
    parts: Mapping[str, Any] = field(default_factory=dict)
    allow: tuple[str, ...] = ()
    """Modules whose code the manifest may name, their submodules included."""

    @property
    def processor(self) -> Any:
        """transformers: the processor, tokenizer or feature extractor. Raises LoadError if there is none."""
        return self._part("processor")

    @property
    def reader(self) -> Any:
        """easyocr: the `easyocr.Reader`. Raises LoadError for other families."""
        return self._part("reader")

    @property
    def tensors(self) -> Any:
        """tensors: the object in the file, as `torch.load` returns it. Raises LoadError for other families.

        Its tensors share memory with `model`: what is written to one of them is seen by every user of the model.
        """
        return self._part("tensors")

    @property
    def pipeline(self) -> Any:
        """diffusers: the pipeline. Raises LoadError for other families."""
        return self._part("pipeline")

    def warm_up(self) -> bool:
        """Run the warm-up that `models.toml` declares; False if it declares none.

        Raises ConfigError if the declared function is not allowed or cannot be imported, LoadError if the call fails.
        """
        return warm_up(self)

    def _part(self, part: str) -> Any:
        if part not in self.parts:
            article = "" if part.endswith("s") else "a "
            raise LoadError(
                f"{self.name}: this model of family {self.baked.manifest.family} was baked without {article}{part}"
            )
        return self.parts[part]


def check_tiers(tiers: Sequence[str]) -> tuple[Tier, ...]:
    """The given tiers, in order. Raises ConfigError for an unknown tier, or if there is none."""
    for tier in tiers:
        if tier not in TIERS:
            raise ConfigError(f"{quote(tier)} is not a tier ({', '.join(TIERS)}){nearest(tier, TIERS)}")
    if not tiers:
        raise ConfigError(f"no tier named: expected some of {', '.join(TIERS)}")
    return tuple(tier for tier in tiers if tier in TIERS)


def unobserved(step: str, model: str | None = None) -> AbstractContextManager[object]:
    """A span that records nothing."""
    return nullcontext()


def import_first(models: Iterable[BakedModel], span: Span = unobserved) -> None:
    """Import what these models' families need besides torch; on a cold start, torch's files are read meanwhile."""
    with FRAMEWORK_LOCK, IMPORTS, span("import first", None):
        for baked in models:
            for module in family_of(baked.manifest.family, f"{baked.folder}: family").without_torch:
                with suppress(ImportError):  # if it is needed, `prepare` raises the error
                    importlib.import_module(module)


@dataclass(frozen=True, kw_only=True)
class Loader:
    """Loads models. It is stateless: one loader serves all models and threads.

    Each method raises DocumentError or IntegrityError if the folder does not match its manifest; ConfigError if the
    class is not allowed or not installed, or the device does not exist; and LoadError if every tier failed.
    """

    tiers: Sequence[Tier] = TIERS
    """Tried in this order."""
    device: str = "cpu"
    """Where the weights go: `cpu`, `cuda`, `cuda:1`."""
    verify: Verify = "size"
    """`full` hashes every file before a load."""
    allow: tuple[str, ...] = ()
    """Python modules whose code a manifest may name, submodules included."""
    span: Span = unobserved

    def load(self, baked: BakedModel) -> LoadedModel:
        """Load the model, ready for use."""
        started = time.monotonic()
        if self.verify == "full":
            with self.span("verify", baked.name):
                check_hashes(baked.manifest, baked.folder)
        module, tier, why = self.module(baked)
        with FRAMEWORK_LOCK, IMPORTS, self.span("equip", baked.name):
            parts = dict(self._family(baked).equip(baked, module))
        return LoadedModel(
            name=baked.name,
            model=parts.pop("model", module),
            tier=tier,
            fallback_reason=why,
            seconds=time.monotonic() - started,
            baked=baked,
            parts=parts,
            allow=self.allow,
        )

    def module(self, baked: BakedModel) -> tuple[nn.Module, Tier, str | None]:
        """The bare module as it was baked, the tier that loaded it, and why faster tiers failed."""
        with self.span("check", baked.name):
            baked.manifest.check_sizes(baked.folder)
        with FRAMEWORK_LOCK, IMPORTS:
            family = self._family(baked)
            self._prepare(family, baked)
        drift.warn(baked)
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
                f"{baked.name}: cannot import a package that its family needs: {error} (pip install {family.install})"
            ) from error

    def _first_tier(self, family: Family, baked: BakedModel) -> tuple[nn.Module, Tier, str | None]:
        reasons: list[str] = []
        last: Exception | None = None
        skeleton_failed = False
        for tier in self.tiers:
            if skeleton_failed and tier != "ordinary":
                continue  # mapped and read use the same skeleton
            try:
                ordinary = tier == "ordinary"
                module = self._ordinary(family, baked) if ordinary else self._assembled(family, baked, tier)
            except ConfigError:
                raise  # a missing class or device is missing for the next tier too
            except Exception as error:  # frameworks raise any exception; the next tier may work
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
            tensors = {
                baked.prefix(path) + name: tensor for path in baked.weights for name, tensor in open_file(path).items()
            }
        if (module := self._restored(family, baked, tensors)) is not None:
            return module
        with FRAMEWORK_LOCK:
            with self.span("skeleton", baked.name):
                module = family.skeleton(baked)
            with self.span("assign", baked.name):
                assign(module, tensors, weights.aliases)
        return module

    def _restored(self, family: Family, baked: BakedModel, tensors: Mapping[str, Any]) -> nn.Module | None:
        """The module from its structure, or None. It touches no shared state, so it needs no lock."""
        from prebake.modules.structure import restore, why_not

        if why := why_not(baked, family):
            logger.debug("%s: constructed without its structure: %s", baked.name, why)
            return None
        try:
            with self.span("structure", baked.name):
                return restore(baked, tensors, family)
        except (LoadError, IntegrityError) as error:
            logger.warning("%s: constructed without its structure, which is slower: %s", baked.name, error)
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
