"""What makes a Python process with frameworks start sooner, apart from the weights.

A service calls `begin()` before it imports torch or transformers; `prebake serve` and `prebake check` do.

While thousands of modules load, the cyclic garbage collector runs over and over and finds nothing:
resting it took 3.28 s of imports to 2.65 s on two cores. `collector` counts who wants it at rest, so that
several loads at once leave it as they found it.
"""

from __future__ import annotations

import gc
import os
import threading

from prebake.startup import deferred, memo, readahead


class Collector:
    """Python's garbage collector, resting while anyone wants it to."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pauses = 0
        self._was_enabled = False

    def pause(self) -> None:
        """Rest the collector until the matching `resume`."""
        with self._lock:
            if self._pauses == 0:
                self._was_enabled = gc.isenabled()
                gc.disable()
            self._pauses += 1

    def resume(self) -> None:
        """Undo one `pause`. After the last, the collector runs again if it did before, and what stands by
        then is frozen: it lives as long as the process, and need not be walked by each later collection."""
        with self._lock:
            self._pauses -= 1
            if self._pauses == 0 and self._was_enabled:
                gc.freeze()
                gc.enable()


collector = Collector()


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
