"""Memory given back while nothing is asked.

An answer's intermediate tensors are freed when it is done, but the C library keeps their pages for the next one:
about 76 MB a process after a BLIP caption. Where several services share a host (`prebake serve --give-memory-back`),
those pages are better given back once no question came for a while; the next one pays for them with page faults.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

PAUSE = 1.0
"""Seconds without a question, after which memory is given back."""


def give_back() -> None:
    """Return freed memory to the system (man 3 malloc_trim). Does nothing where the C library has no such call."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(ctypes.c_size_t(0))


class WhenIdle:
    """Calls `action` once, `pause` seconds after the last of the works under way ended."""

    def __init__(self, action: Callable[[], None] = give_back, pause: float = PAUSE) -> None:
        self._action, self._pause = action, pause
        self._lock = threading.Lock()
        self._works = 0
        self._timer: threading.Timer | None = None

    @contextmanager
    def work(self) -> Iterator[None]:
        """Something is done meanwhile; safe under threads."""
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
