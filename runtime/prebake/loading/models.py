"""Many models: lazy or all at once, each loaded once however many threads ask.

Every model has a slot with at most one flight: a daemon thread that loads it and settles a future. Whoever
asks waits for that future. A failed flight is kept, and the next caller after a pause starts a new one.
"""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path

from prebake.baked import layout
from prebake.baked.integrity import check_verify
from prebake.baked.model import BakedModel, find_models
from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError, UnknownModelError
from prebake.families.allowed import allowed_modules
from prebake.loading.importing import Needed, must_load_here, needed_by
from prebake.loading.prefetch import Prefetch
from prebake.loading.slot import Slot, fail, settled
from prebake.startup.quickstart import collector
from prebake.telemetry import timeline
from prebake.telemetry.status import State, Status
from prebake.tiers.loader import TIERS, LoadedModel, Loader, check_tiers, import_first
from prebake.tiers.warmup import try_to_warm_up

logger = logging.getLogger(__name__)

RETRY_PAUSE = 5.0
"""Seconds that a failed model rests before the next use tries again."""


class Models:
    """The baked models under a root folder. Making one reads manifests only.

    `tiers` restricts how models may come into memory (default: the environment's `PREBAKE_TIERS`, comma
    separated, else all); `device` is where their weights go; `verify="full"` hashes every file before its load.
    `warm` (default: whether the environment has `PREBAKE_WARM=1`) calls each model once with the warm-up that it
    declares before it counts as loaded; a call that fails is logged as a warning. Do not use it in a process that forks
    workers afterwards (gunicorn with `--preload`): OpenMP and MKL may hang in a child of a process that has computed.
    `allow` names the modules whose code a manifest may name, as factory of the family torch or as warm-up, beside those
    of the environment's `PREBAKE_ALLOW` (comma separated): `app` stands for `app` and its submodules. None are allowed
    otherwise.
    Raises ConfigError where the root holds no model, and DocumentError where a manifest cannot be read.
    """

    def __init__(
        self,
        root: Path | str | None = None,
        *,
        tiers: Sequence[str] | None = None,
        device: str = "cpu",
        verify: str = "size",
        allow: Sequence[str] = (),
        warm: bool | None = None,
    ) -> None:
        self.root = Path(root) if root is not None else layout.default_root()
        declared = os.environ.get(layout.ENV_TIERS)
        loader = Loader(
            tiers=check_tiers(tiers if tiers is not None else declared.split(",") if declared else TIERS),
            device=device, verify=check_verify(verify), allow=allowed_modules(allow), span=timeline.span,
        )  # fmt: skip
        self._slots = {baked.name: Slot(baked) for baked in find_models(self.root)}
        self._lock = threading.Lock()
        self._unread: list[Slot] = []
        self._prefetch = Prefetch()
        self._all_at_once = False
        self._warm = os.environ.get(layout.ENV_WARM) == "1" if warm is None else warm
        self._load: Callable[[BakedModel], LoadedModel] = loader.load
        _living.add(self)
        self._thaws: weakref.finalize[..., Models] | None = None

    @property
    def names(self) -> tuple[str, ...]:
        """The models' names, sorted."""
        return tuple(self._slots)

    @property
    def baked(self) -> tuple[BakedModel, ...]:
        """Folder and manifest of each model, loaded or not."""
        return tuple(slot.baked for slot in self._slots.values())

    @property
    def timeline(self) -> timeline.Timeline:
        """The spans of this process so far."""
        return timeline.process

    def __contains__(self, name: object) -> bool:
        return name in self._slots

    def __iter__(self) -> Iterator[str]:
        return iter(self._slots)

    def __len__(self) -> int:
        return len(self._slots)

    def __getitem__(self, name: str) -> LoadedModel:
        """The loaded model; loads it now if nobody did.

        Raises UnknownModelError, LoadTimeoutError after the model's own timeout, or the error of the load. A module
        that asks while it is being imported, and holds the model's factory or may be imported by it, loads the model
        in its own thread, without a timeout; ConfigError where that cannot work (`prebake.loading.importing`).
        """
        slot = self._slot(name)
        self._prefetch.first(slot.baked.weights)
        return self._wait(slot, self._awaited(slot), slot.baked.manifest.loading.timeout, time.monotonic())

    async def get(self, name: str) -> LoadedModel:
        """Like `models[name]`, without blocking the event loop."""
        import asyncio  # 20 ms that only those pay who use it

        slot = self._slot(name)
        self._prefetch.first(slot.baked.weights)
        flight, timeout = self._awaited(slot), slot.baked.manifest.loading.timeout
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(flight)), timeout)
        except asyncio.TimeoutError:
            return settled(slot, flight, timeout)

    def start(self) -> None:
        """Load every model in the background, all at once; returns immediately.

        A fork waits while these loads import: a child could not finish what another thread began to import. Python's
        garbage collector rests until the last load is settled: it would run over and over while
        frameworks import.
        """
        self._all_at_once = True
        for slot in self._slots.values():
            self._flight(slot)

    def wait(self, timeout: float | None = None, *, required_only: bool = False) -> None:
        """Wait until every model is loaded, starting those that nobody asked for yet.

        A model is waited for until it is loaded, until its own timeout, or until `timeout` seconds after the
        call. Then raises the first error, which is a LoadTimeoutError where the time was not enough.
        """
        began = time.monotonic()
        errors: list[BaseException] = []
        slots = [slot for slot in self._slots.values() if slot.baked.manifest.loading.required or not required_only]
        flights = [(slot, self._awaited(slot)) for slot in slots]
        for slot, flight in flights:
            limits = [limit for limit in (timeout, slot.baked.manifest.loading.timeout) if limit is not None]
            try:
                self._wait(slot, flight, min(limits, default=None), began)
            except Exception as error:  # kept until all are settled: one must not hide another
                errors.append(error)
        if errors:
            raise errors[0]

    def status(self) -> tuple[Status, ...]:
        """Every model's state; loads nothing."""
        return tuple(Status.of(slot.baked, slot.flight) for slot in self._slots.values())

    @property
    def ready(self) -> bool:
        """Whether every required model is loaded."""
        return all(status.state is State.READY for status in self.status() if status.required)

    def unload(self, name: str) -> None:
        """Forget a loaded model; its memory goes when its last user lets go of it. The next use loads it anew."""
        slot = self._slot(name)
        with self._lock:
            if slot.flight is not None and slot.flight.done():
                slot.flight = None
        collector.thaw()  # else the collector would never find a model whose objects refer to each other

    def _slot(self, name: str) -> Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise UnknownModelError(
                f"{self.root}: no model {quote(name)} (there are: {', '.join(self.names)}){nearest(name, self.names)}"
            ) from None

    def _awaited(self, slot: Slot) -> Future[LoadedModel]:
        """The flight of a model that this thread is about to wait for."""
        flight = slot.flight
        if flight is not None and flight.done() and not self._may_try_again(slot):
            return flight
        return self._flight(slot, here=must_load_here(needed_by(slot.baked, self._warm), _under_way()))

    def _flight(self, slot: Slot, *, here: bool = False) -> Future[LoadedModel]:
        with self._lock:
            if slot.flight is not None and not self._may_try_again(slot):
                return slot.flight
            flight = slot.flight = Future()
            flight.set_running_or_notify_cancel()
        if self._thaws is None:  # only then: models that nobody loaded hold nothing frozen
            self._thaws = weakref.finalize(self, collector.thaw)
            self._thaws.atexit = False
        collector.pause(flight)
        if here:
            self._fly(slot, flight)
            return flight
        thread = threading.Thread(target=self._fly, args=(slot, flight), name=f"prebake-{slot.baked.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system allows no more threads: nobody else would settle the flight
            fail(slot, flight, error)
        return flight

    def _may_try_again(self, slot: Slot) -> bool:
        return slot.state is State.FAILED and time.monotonic() - slot.failed_at >= RETRY_PAUSE

    def _fly(self, slot: Slot, flight: Future[LoadedModel]) -> None:
        try:
            with timeline.span("load", slot.baked.name):
                if self._all_at_once:
                    import_first(self.baked, timeline.span)
                loaded = self._load_with_retries(slot.baked)
        except BaseException as error:
            fail(slot, flight, error)
        else:
            try:
                self._after_load(slot, flight, loaded)
            finally:  # what fails there must not keep anyone waiting for a model that is loaded
                flight.set_result(loaded)

    def _after_load(self, slot: Slot, flight: Future[LoadedModel], loaded: LoadedModel) -> None:
        try:
            logger.info("%s: %s in %.3f s", loaded.name, loaded.tier, loaded.seconds)
            collector.resume(flight)
            if loaded.tier == "mapped":
                self._read_ahead(slot)
        except Exception as error:
            logger.warning("%s: its weights are not read ahead: %s", slot.baked.name, error)
        if self._warm:
            try_to_warm_up(loaded, timeline.span)

    def _read_ahead(self, loaded: Slot) -> None:
        """Have mapped weights read before they are used, once nothing else loads: imports need the disk first."""
        with self._lock:
            self._unread.append(loaded)  # its flight lands in a moment
            if any(slot.state is State.LOADING and slot not in self._unread for slot in self._slots.values()):
                return
            slots, self._unread = self._unread, []
        self._prefetch.add(path for slot in slots for path in slot.baked.weights)

    def _load_with_retries(self, baked: BakedModel) -> LoadedModel:
        for attempt in range(baked.manifest.loading.retries):
            try:
                return self._load(baked)
            except ConfigError:
                raise  # the same configuration fails the same way
            except Exception as error:
                pause = min(0.2 * 2**attempt, 5.0)
                logger.warning("%s: try %d failed (%s); again in %.1f s", baked.name, attempt + 1, error, pause)
                time.sleep(pause)
        return self._load(baked)

    def _wait(self, slot: Slot, flight: Future[LoadedModel], limit: float | None, began: float) -> LoadedModel:
        left = None if limit is None else max(0.0, began + limit - time.monotonic())
        try:
            return flight.result(left)
        except FutureTimeoutError:
            return settled(slot, flight, limit)

    def _after_fork(self) -> None:
        """In a forked child: loaded models stay, flights of the parent's threads are gone."""
        self._lock, self._prefetch, self._unread = threading.Lock(), Prefetch(), []
        for slot in self._slots.values():
            if slot.state is State.LOADING:
                slot.flight = None


_living: weakref.WeakSet[Models] = weakref.WeakSet()
"""Every `Models` that somebody holds: a fork handler of its own would hold it, and its weights, for ever."""


def _under_way() -> Iterator[Needed]:
    for models in list(_living):
        for slot in models._slots.values():
            if slot.state is State.LOADING:
                yield needed_by(slot.baked, models._warm)


def _after_fork_in_child() -> None:
    for models in list(_living):
        models._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
