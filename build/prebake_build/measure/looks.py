"""Looking at a service's memory again and again, for services whose end is what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable

from prebake.watching.proc import Memory

SAMPLED = 0.25
"""Seconds between two looks."""
ENOUGH = 4
"""Fewer looks tell nothing of a job: while it is being executed it has some kilobytes."""


class Looks:
    """The highest memory seen in several looks."""

    def __init__(self, memory: Callable[[], Memory | None]) -> None:
        self._memory = memory
        self._next = 0.0
        self._count = 0
        self.last: Memory | None = None
        self.peak: int | None = None

    @property
    def enough(self) -> bool:
        """Whether a job lasted long enough for its memory to be known."""
        return self._count >= ENOUGH

    def look(self, now: bool = False) -> None:
        """Look, unless the last look was less than `SAMPLED` seconds ago and it need not be `now`."""
        if not now and time.perf_counter() < self._next:
            return
        self._next = time.perf_counter() + SAMPLED
        found = self._memory()
        if found is not None:
            self._count += 1
            self.last, self.peak = found, max(found.peak, self.peak or 0)
