"""One model of a `Models`, and the end of its flight."""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future

from prebake.baked.model import BakedModel
from prebake.errors import LoadTimeoutError
from prebake.startup.quickstart import collector
from prebake.telemetry.status import State
from prebake.tiers.loader import LoadedModel

logger = logging.getLogger(__name__)


class Slot:
    """One model and its flight, guarded by the lock of its `Models`."""

    def __init__(self, baked: BakedModel) -> None:
        self.baked = baked
        self.flight: Future[LoadedModel] | None = None
        self.failed_at = 0.0

    @property
    def state(self) -> State:
        return State.of(self.flight)


def fail(slot: Slot, flight: Future[LoadedModel], error: BaseException) -> None:
    """End the flight with this error."""
    slot.failed_at = time.monotonic()
    logger.error("%s: %s", slot.baked.name, error)
    collector.resume(flight)
    flight.set_exception(error)


def settled(slot: Slot, flight: Future[LoadedModel], limit: float | None) -> LoadedModel:
    """The outcome after a timeout: if the load has just ended, or raised a TimeoutError itself, its own result."""
    if flight.done():
        return flight.result()
    raise LoadTimeoutError(
        f"{slot.baked.name}: not loaded within {limit:g} s (still loading: ask again, or raise its timeout)"
    ) from None
