"""A weighted semaphore: threads share an amount, such as bytes of memory, and each takes a different part."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Capacity:
    """`total` units, of which each holder takes some and returns them. Thread-safe."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """Number of free units."""
        return self._free

    def try_take(self, amount: int, *, spare: int = 0) -> bool:
        """Take `amount` if at least `spare` units stay free; return whether it was taken. Never waits."""
        with self._changed:
            if self._free - amount < spare:
                return False
            self._free -= amount
            return True

    def give(self, amount: int) -> None:
        """Return `amount`, which was taken before."""
        with self._changed:
            self._free += amount
            self._changed.notify_all()

    @contextmanager
    def taken(self, amount: int) -> Iterator[Share]:
        """Wait until `amount` is free and hold it during the block. Raises ValueError if it exceeds the total."""
        if amount > self.total:
            raise ValueError(f"{amount:,} of {self.total:,} can never be taken")
        with self._changed:
            self._changed.wait_for(lambda: self._free >= amount)
            self._free -= amount
        share = Share(self, amount)
        try:
            yield share
        finally:
            share.shrink(0)


class Share:
    """The part of a capacity that one holder has."""

    def __init__(self, capacity: Capacity, amount: int) -> None:
        self._capacity, self.amount = capacity, amount

    def shrink(self, amount: int) -> None:
        """Keep at most `amount` and return the rest."""
        rest = max(self.amount - amount, 0)
        self.amount -= rest
        self._capacity.give(rest)
