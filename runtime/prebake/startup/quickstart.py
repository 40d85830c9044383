"""What makes a Python process with frameworks start sooner, apart from the weights.

A service calls `begin()` before it imports torch or transformers; `prebake serve` and `prebake check` do.

While thousands of modules load, the cyclic garbage collector runs over and over and finds nothing:
resting it took 3.28 s of imports to 2.65 s on two cores. `collector` keeps a list of who wants it at rest, so that
several loads at once leave it as they found it.
"""

from __future__ import annotations

import gc
import os
import threading

from prebake.startup import deferred, memo, readahead


class Collector:
    """Python's garbage collector, resting while anyone wants it to.

    After the first pause, every object is frozen, once: later collections need not walk the hundreds of thousands that
    frameworks leave. A collection before it would take 115 to 250 ms (torch and transformers imported, two cores) for
    fewer than 10,000 objects and no measurable memory. Later loads are not frozen, and `thaw` undoes the freeze: a
    frozen model would stay for ever once it is unloaded, if its objects refer to each other.
    """

    def __init__(self) -> None:
        self._lock = threading.RLock()  # a finalizer that a collection calls meanwhile may unload a model
        self._pauses: list[object] = []
        self._was_enabled = False
        self._frozen: bool | None = None  # None until the first time

    def pause(self, load: object = None) -> None:
        """Rest the collector until the matching `resume`.

        `load` identifies a load in a thread of its own: a forked child, which lacks that thread, drops its pause.
        """
        with self._lock:
            if not self._pauses:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._pauses.append(load)

    def resume(self, load: object = None) -> None:
        """Undo one `pause`, that of the same load; does nothing where there is none. After the last, the collector
        runs again if it did before the first."""
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
        """Let what was frozen be collected again, for good."""
        with self._lock:
            if self._frozen:
                gc.unfreeze()
                self._frozen = False

    def _after_fork(self) -> None:
        """In a forked child: a thread of the parent may hold the lock, and its loads never end here."""
        self._lock = threading.RLock()
        self._pauses = [load for load in self._pauses if load is None]
        if not self._pauses and self._was_enabled:
            gc.enable()
            self._was_enabled = False


collector = Collector()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=collector._after_fork)


def begin() -> None:
    """Defer imports that inference does without, and keep what frameworks would work out anew at each start.

    Idle threads of OpenMP sleep instead of spinning: on cores that others use too, spinning took the first caption
    from 2.4 s of processor time to 8, and later ones are as fast either way (`OMP_WAIT_POLICY` overrides it).

    Call it first thing, before any framework is imported. The environment's `PREBAKE_DEFER=0` and an empty
    `PREBAKE_MEMO` turn the two off. Safe to call again.
    """
    readahead.begin()
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # read when torch loads its libraries
    deferred.defer()
    memo.install()
