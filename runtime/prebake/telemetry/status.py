"""The state of one model, as `Models.status()` and `/readyz` report it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any

from prebake.errors import PrebakeError

if TYPE_CHECKING:
    from concurrent.futures import Future

    from prebake.baked.model import BakedModel
    from prebake.tiers.loader import LoadedModel


class State(str, Enum):
    """The state of one model."""

    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"

    @classmethod
    def of(cls, load: Future[LoadedModel] | None) -> State:
        if load is None:
            return cls.IDLE
        if not load.done():
            return cls.LOADING
        return cls.FAILED if load.exception() else cls.READY


@dataclass(frozen=True, kw_only=True, slots=True)
class Status:
    """One model's state, as `/readyz` shows it."""

    name: str
    state: State
    required: bool
    tier: str | None = None
    fallback_reason: str | None = None
    seconds: float | None = None
    error: str | None = None

    @classmethod
    def of(cls, baked: BakedModel, load: Future[LoadedModel] | None) -> Status:
        """The status of a model and its load; `load` is None if it has not started."""
        name, required, state = baked.name, baked.manifest.loading.required, State.of(load)
        if load is None or state in (State.IDLE, State.LOADING):
            return cls(name=name, required=required, state=state)
        error = load.exception()
        if error is not None:
            text = str(error) if isinstance(error, PrebakeError) else f"{type(error).__name__}: {error}"
            return cls(name=name, required=required, state=state, error=text)
        loaded = load.result()
        return cls(
            name=name, required=required, state=state, tier=loaded.tier,
            fallback_reason=loaded.fallback_reason, seconds=round(loaded.seconds, 4),
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__ if name != "name"} | {"state": self.state.value}
