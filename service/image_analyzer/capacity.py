"""An amount that threads share, such as bytes of memory: a semaphore whose holders weigh differently."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager


class Capacity:
    """`total` units, of which each holder takes some and gives them back. Safe under threads."""

    def __init__(self, total: int) -> None:
        self.total = total
        self._free = total
        self._changed = threading.Condition()

    @property
    def free(self) -> int:
        """How many units nobody holds."""
        return self._free

    def try_take(self, amount: int, *, spare: int = 0) -> bool:
        """Take `amount` if `spare` units stay free afterwards; whether it was taken. Never waits."""
        with self._changed:
            if self._free - amount < spare:
                return False
            self._free -= amount
            return True

    def give(self, amount: int) -> None:
        """Return what was taken."""
        with self._changed:
            self._free += amount
            self._changed.notify_all()

    @contextmanager
    def taken(self, amount: int) -> Iterator[Share]:
        """Wait until `amount` is free, and hold it during the block. Raises ValueError where it exceeds the total."""
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
    """What one holder has of a capacity."""

    def __init__(self, capacity: Capacity, amount: int) -> None:
        self._capacity, self.amount = capacity, amount

    def shrink(self, amount: int) -> None:
        """Keep at most `amount`, and give back the rest."""
        rest = max(self.amount - amount, 0)
        self.amount -= rest
        self._capacity.give(rest)
