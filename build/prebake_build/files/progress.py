"""How far long work is, on standard error: a bar on a terminal, and in a log a line now and then.

Code that works through bytes calls `add`, wherever it is; who began the work says what it is by `telling`. Nothing is
said where nobody did. A bar has the rate and the time left, and so have the lines; neither has colours.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

from prebake.documents.sizes import format_size

PAUSE = 15.0
"""Seconds before the first line in a log, and between two."""


class Progress:
    """Of one work. Threads may share it."""

    def __init__(self, what: str, total: int | None, *, done: int = 0, bar: bool = True) -> None:
        """`total` and `done` are bytes; a total of None is unknown. Without `bar`, a terminal gets nothing: for work
        whose library draws its own."""
        self._what, self._total, self._before, self._done = what, total, done, done
        self._began = self._told = time.monotonic()
        self._lock = Lock()
        self._terminal = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._bar = _bar(what, total, done) if self._terminal and bar else None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def add(self, count: int) -> None:
        """So many bytes more are done."""
        with self._lock:
            self._done += count
            if self._bar is not None:
                self._bar.update(count)
            elif not self._terminal and (now := time.monotonic()) - self._told >= PAUSE:
                self._told = now
                print(self._line(now - self._began), file=sys.stderr, flush=True)

    def _line(self, seconds: float) -> str:
        rate = (self._done - self._before) / seconds
        line = f"{self._what}: {format_size(self._done)}"
        if self._total:
            line += f" of {format_size(self._total)} ({min(self._done / self._total, 1):.0%})"
        line += f", {format_size(round(rate))}/s"
        if self._total and rate:
            line += f", {_spell(max(self._total - self._done, 0) / rate)} left"
        return line


_current: Progress | None = None


@contextmanager
def telling(what: str, total: int | None, *, bar: bool = True) -> Iterator[None]:
    """Tell about the bytes that `add` counts in the block, also in its threads; an outer block waits meanwhile."""
    global _current
    with Progress(what, total, bar=bar) as progress:
        outer, _current = _current, progress
        try:
            yield
        finally:
            _current = outer


def add(count: int) -> None:
    """So many bytes of the work that `telling` named are done."""
    if (current := _current) is not None:
        current.add(count)


def _bar(what: str, total: int | None, done: int) -> Any:
    from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]

    return tqdm(desc=what, total=total, initial=done, unit="B", unit_scale=True, leave=False, file=sys.stderr)


def _spell(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
