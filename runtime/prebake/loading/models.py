"""Many models, loaded lazily or all at once; each is loaded once, however many threads ask for it.

Every model has a slot with at most one flight: a daemon thread that loads the model and sets a future. Callers wait for
that future. A failed flight is kept; after a pause, the next caller starts a new one.
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
from prebake.snapshot.point import after_restore, wanted
from prebake.startup.quickstart import collector
from prebake.telemetry import timeline
from prebake.telemetry.status import State, Status
from prebake.tiers.loader import TIERS, LoadedModel, Loader, check_tiers, import_first
from prebake.tiers.warmup import try_to_warm_up

logger = logging.getLogger(__name__)

RETRY_PAUSE = 5.0
"""Seconds after a failed load before the next use tries again."""


class Models:
    """The baked models under a root folder. The constructor reads manifests only.

    `tiers` restricts how models may be loaded (default: environment variable `PREBAKE_TIERS`, comma separated, else
    all); `device` is where their weights go; `verify="full"` hashes every file before its load. `warm` (default:
    `PREBAKE_WARM=1`) runs each model's declared warm-up before the model counts as loaded; if that fails, logs a
    warning. (Not in a process that forks workers afterwards: a child inherits no threads of OpenMP, and hangs in its
    first computation.) `allow` lists the Python modules whose code manifests may name, as a factory of family torch or
    as a warm-up, in addition to those in `PREBAKE_ALLOW` (comma separated): `app` stands for `app` and its submodules.
    By default none are allowed. Raises ConfigError if the root holds no model, and DocumentError if a manifest cannot
    be read.
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
        """The loaded model. Loads it, or waits for a load that another thread has started.

        Raises UnknownModelError, LoadTimeoutError after the model's own timeout, or the error of the load. If a module
        asks while it is being imported, and the load may need that module, the load runs in the calling thread and
        without a timeout; raises ConfigError if that cannot work (see `prebake.loading.importing`).
        """
        slot = self._slot(name)
        self._prefetch.first(slot.baked.weights)
        return self._wait(slot, self._awaited(slot), slot.baked.manifest.loading.timeout, time.monotonic())

    async def get(self, name: str) -> LoadedModel:
        """Like `models[name]`, without blocking the event loop."""
        import asyncio  # takes 20 ms, so only here

        slot = self._slot(name)
        self._prefetch.first(slot.baked.weights)
        flight, timeout = self._awaited(slot), slot.baked.manifest.loading.timeout
        try:
            return await asyncio.wait_for(asyncio.shield(asyncio.wrap_future(flight)), timeout)
        except asyncio.TimeoutError:
            return settled(slot, flight, timeout)

    def start(self) -> None:
        """Load every model in the background, all at once; returns immediately.

        A fork waits while these loads import, because a child process can't finish another thread's import. Python's
        garbage collector is off until the last load ends: it would run repeatedly while frameworks are imported.
        """
        self._all_at_once = True
        for slot in self._slots.values():
            self._flight(slot)

    def wait(self, timeout: float | None = None, *, required_only: bool = False) -> None:
        """Wait until every model is loaded; starts the loads that have not been started.

        Waits for each model until it is loaded, or its own timeout or `timeout` seconds have passed since the call.
        Then raises the first error; a timeout is a LoadTimeoutError.
        """
        began = time.monotonic()
        errors: list[BaseException] = []
        slots = [slot for slot in self._slots.values() if slot.baked.manifest.loading.required or not required_only]
        flights = [(slot, self._awaited(slot)) for slot in slots]
        for slot, flight in flights:
            limits = [limit for limit in (timeout, slot.baked.manifest.loading.timeout) if limit is not None]
            try:
                self._wait(slot, flight, min(limits, default=None), began)
            except Exception as error:  # wait for all models first
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
        """Drop a loaded model; its memory is freed once nothing refers to it. The next use loads it again."""
        slot = self._slot(name)
        with self._lock:
            if slot.flight is not None and slot.flight.done():
                slot.flight = None
        collector.thaw()  # else the collector could not free the model's reference cycles

    def _slot(self, name: str) -> Slot:
        try:
            return self._slots[name]
        except KeyError:
            raise UnknownModelError(
                f"{self.root}: no model {quote(name)} (there are: {', '.join(self.names)}){nearest(name, self.names)}"
            ) from None

    def _awaited(self, slot: Slot) -> Future[LoadedModel]:
        """The model's flight, started if necessary, for this thread to wait on."""
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
        if self._thaws is None:  # not before: without a load, nothing is frozen
            self._thaws = weakref.finalize(self, collector.thaw)
            self._thaws.atexit = False
        collector.pause(flight)
        if here:
            self._fly(slot, flight)
            return flight
        thread = threading.Thread(target=self._fly, args=(slot, flight), name=f"prebake-{slot.baked.name}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # the system allows no more threads, so nothing else would set the future
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
            finally:  # a failed prefetch must not block callers: the model is loaded
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
        """Prefetch mapped weights once no other model is loading: imports need the disk first."""
        with self._lock:
            self._unread.append(loaded)  # its future is set right after this
            if wanted():
                return  # until the restore
            if any(slot.state is State.LOADING and slot not in self._unread for slot in self._slots.values()):
                return
        self._prefetch_unread()

    def _prefetch_unread(self) -> None:
        with self._lock:
            slots, self._unread = self._unread, []
        self._prefetch.add(path for slot in slots for path in slot.baked.weights)

    def _load_with_retries(self, baked: BakedModel) -> LoadedModel:
        for attempt in range(baked.manifest.loading.retries):
            try:
                return self._load(baked)
            except ConfigError:
                raise  # retrying would fail the same way
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
        """In a forked child: keep loaded models, drop flights of the parent's threads."""
        self._lock, self._prefetch, self._unread = threading.Lock(), Prefetch(), []
        for slot in self._slots.values():
            if slot.state is State.LOADING:
                slot.flight = None


_living: weakref.WeakSet[Models] = weakref.WeakSet()
"""All live `Models`. A fork handler per instance would keep the instance, and its weights, alive forever."""


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


@after_restore
def _after_restore() -> None:
    """Prefetch the weights of models that were loaded before the dump."""
    for models in list(_living):
        models._prefetch_unread()
