"""Speeds up the start of a Python process with frameworks, apart from the weights.

A service calls `begin()` before it imports torch or transformers; `prebake serve` and `prebake check` do.

While thousands of modules are imported, the cyclic garbage collector runs repeatedly and finds nothing: pausing it
reduced the imports from 3.28 s to 2.65 s on two cores. `collector` keeps a list of pauses, so that several concurrent
loads restore its original state.
"""

from __future__ import annotations

import gc
import os
import threading

from prebake.startup import deferred, memo, readahead


class Collector:
    """Pauses Python's garbage collector while at least one caller needs it paused.

    When the first pause ends, every object is frozen, once, so later collections skip the hundreds of thousands of
    objects of the frameworks. A collection before the freeze would take 115 to 250 ms (torch and transformers imported,
    two cores) to free fewer than 10,000 objects and no measurable memory. Later loads are not frozen, and `thaw` undoes
    the freeze: a frozen model with reference cycles would never be freed after it is unloaded.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # reentrant: a collection may run a finalizer that unloads a model
        self._pauses: list[object] = []
        self._was_enabled = False
        self._frozen: bool | None = None  # None until the first time

    def pause(self, load: object = None) -> None:
        """Pause the collector until the matching `resume`.

        `load` identifies a load in its own thread: a forked child lacks that thread, so it drops the pause.
        """
        with self._lock:
            if not self._pauses:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._pauses.append(load)

    def resume(self, load: object = None) -> None:
        """Undo one `pause` of the same load; does nothing if there is none. After the last one, the collector is
        enabled again if it was enabled before the first pause."""
        with self._lock:
            if load not in self._pauses:
                return
            self._pauses.remove(load)
            if not self._pauses and self._was_enabled:
                if self._frozen is None:
                    gc.freeze()
                    self._frozen = True
                gc.enable()
                self._was_enabled = False

    def thaw(self) -> None:
        """Unfreeze all objects permanently, so that they can be collected."""
        with self._lock:
            if self._frozen:
                gc.unfreeze()
                self._frozen = False

    def _after_fork(self) -> None:
        """In a forked child: replace the lock, which the parent may hold, and drop the pauses of the parent's loads."""
        self._lock = threading.RLock()
        self._pauses = [load for load in self._pauses if load is None]
        if not self._pauses and self._was_enabled:
            gc.enable()
            self._was_enabled = False


collector = Collector()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=collector._after_fork)


def begin() -> None:
    """Defer imports that inference does not need, and cache results that frameworks would recompute at each start.

    Makes idle OpenMP threads sleep after some 100 µs instead of spinning: on shared cores, spinning increased the CPU
    time of the first caption from 2.4 s to 8 s, and sleeping at once made a small model's answer take 50 ms instead of
    29 (`OMP_WAIT_POLICY`, or `GOMP_SPINCOUNT` beside it, overrides it).

    Call it before any framework is imported. `PREBAKE_DEFER=0` turns off the deferral, an empty `PREBAKE_MEMO` the
    cache. Safe to call again.
    """
    readahead.begin()
    if "OMP_WAIT_POLICY" not in os.environ:  # OpenMP reads both when torch loads its libraries
        os.environ["OMP_WAIT_POLICY"] = "passive"
        os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    deferred.defer()
    memo.install()
