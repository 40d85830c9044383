"""Returns freed memory to the system while the service is idle.

The intermediate tensors of a request are freed when it finishes, but the C library keeps their pages for the next one:
about 76 MB per process after a BLIP caption. If several services share a host, `prebake serve --give-memory-back`
returns these pages after a pause; the next request then costs page faults.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 1.0
"""Seconds without a request before memory is returned."""


def give_back() -> None:
    """Return freed memory to the system (man 3 malloc_trim). Does nothing if the C library lacks this function."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


class WhenIdle:
    """Calls `action` once, `pause` seconds after the last active request finishes."""

    def __init__(self, action: Callable[[], None] = give_back, pause: float = PAUSE) -> None:
        self._action, self._pause = action, pause
        self._lock = threading.Lock()
        self._works = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def work(self) -> Iterator[None]:
        """Mark the block as active. Thread-safe."""
        with self._lock:
            self._works += 1
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        try:
            yield
        finally:
            with self._lock:
                self._works -= 1
                if self._works == 0:
                    self._timer = threading.Timer(self._pause, self._action)
                    self._timer.daemon = True
                    self._timer.start()
