"""Where a start's time and memory went: spans since the birth of the process.

The clock starts when the kernel creates the process, so it includes the interpreter's start and the imports::

    with prebake.timeline.span("warm up"):
        model(example)

    @prebake.timeline.span("read prices")
    def read_prices(): ...

The first 10,000 spans are kept individually; no start has more. Later spans, such as those of a function that every
request calls, are summed for each name and model: count, total seconds and longest.

Standard library only. Uses Linux's `/proc`; on other systems the birth is the import of this module, and memory is the
peak from `getrusage`.
"""

from __future__ import annotations

import functools
import os
import resource
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

FORMAT = 1
READY = "ready"
FIRST_ANSWER = "first answer"

KEPT = 10_000
"""Number of spans kept individually; later spans are summed."""

SUMS = 1_000
"""Number of (name, model) pairs with their own sum; spans of further pairs are summed under OTHERS."""

OTHERS = "(other spans)"

F = TypeVar("F", bound=Callable[..., Any])


def _birth() -> float:
    """When this process was created, on the clock of `time.monotonic`; accurate to 10 ms (one kernel tick)."""
    try:
        after_name = Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
        since_boot = int(after_name[19]) / os.sysconf("SC_CLK_TCK")  # field 22, starttime
        age = time.clock_gettime(time.CLOCK_BOOTTIME) - since_boot
    except (OSError, ValueError, IndexError, AttributeError):
        return time.monotonic()
    return time.monotonic() - age


@dataclass(frozen=True, kw_only=True, slots=True)
class Span:
    """One phase."""

    name: str
    model: str | None
    """The model that the phase belongs to, or None for phases of the process."""
    start: float
    """Seconds since the birth of the process."""
    end: float
    thread: str
    depth: int
    """Number of enclosing spans in the same thread."""

    @property
    def seconds(self) -> float:
        return self.end - self.start

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "model": self.model, "start": round(self.start, 6),
                "end": round(self.end, 6), "thread": self.thread, "depth": self.depth}  # fmt: skip


@dataclass(kw_only=True, slots=True)
class Sum:
    """The sum of the spans of one name and model that are not kept individually."""

    count: int = 0
    seconds: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.seconds += seconds
        self.longest = max(self.longest, seconds)


@dataclass(frozen=True, kw_only=True, slots=True)
class Memory:
    """Memory of the process, in bytes, and its page faults."""

    rss: int
    anonymous: int
    """Private memory, not shared with other processes."""
    file: int
    """Pages of mapped files: shared with every process that maps the same file, and reclaimable."""
    peak_rss: int
    minor_faults: int
    major_faults: int
    """Faults that had to read from a disk."""

    @classmethod
    def now(cls) -> Memory:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        kinds = {"VmRSS": peak, "RssAnon": 0, "RssFile": 0, "VmHWM": peak}
        try:
            for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
                name, _, value = line.partition(":")
                if name in kinds:
                    kinds[name] = int(value.split()[0]) * 1024
        except OSError:
            pass
        return cls(rss=kinds["VmRSS"], anonymous=kinds["RssAnon"], file=kinds["RssFile"], peak_rss=kinds["VmHWM"],
                   minor_faults=usage.ru_minflt, major_faults=usage.ru_majflt)  # fmt: skip

    def to_dict(self) -> dict[str, int]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass
class Timeline:
    """The spans and marks of one process. Thread-safe: spans are added under a lock, and each mark is set once."""

    birth: float = field(default_factory=_birth)
    spans: list[Span] = field(default_factory=list)
    """The first `KEPT`, in the order in which they ended."""
    later: dict[tuple[str, str | None], Sum] = field(default_factory=dict)
    """Name and model → the sum of the later spans."""
    marks: dict[str, float] = field(default_factory=dict)
    """Name → seconds since the birth, when the mark was first set."""
    memory: dict[str, Memory] = field(default_factory=dict)
    """Name of the mark → memory at that moment."""
    _depths: threading.local = field(default_factory=threading.local, repr=False)
    _lock: threading.RLock = field(default_factory=threading.RLock, repr=False)
    """Reentrant: a garbage collection under the lock may run a finalizer that records a span."""

    def now(self) -> float:
        """Seconds since the birth of the process."""
        return time.monotonic() - self.birth

    def span(self, name: str, model: str | None = None) -> _SpanContext:
        """Record a phase: use it as a context manager or as a decorator."""
        return _SpanContext(self, name, model)

    def mark(self, name: str) -> None:
        """Record the time and the memory under this name; only the first call per name counts."""
        if name not in self.marks:
            self.memory.setdefault(name, Memory.now())  # before the mark, so every mark has its memory
            self.marks.setdefault(name, self.now())

    @contextmanager
    def _record(self, name: str, model: str | None) -> Iterator[None]:
        depth = getattr(self._depths, "value", 0)
        self._depths.value = depth + 1
        start = self.now()
        try:
            yield
        finally:
            self._depths.value = depth
            thread = threading.current_thread().name
            self._add(Span(name=name, model=model, start=start, end=self.now(), thread=thread, depth=depth))

    def _add(self, span: Span) -> None:
        with self._lock:
            if len(self.spans) < KEPT:
                self.spans.append(span)
                return
            key = span.name, span.model
            if key not in self.later and len(self.later) >= SUMS:
                key = OTHERS, None
            self.later.setdefault(key, Sum()).add(span.seconds)

    def to_dict(self) -> dict[str, Any]:
        """The timeline for `/startup` and `prebake check --json`; times in seconds, memory in bytes.

        `later` lists the sums of the spans that are not in `spans`; it is empty after most starts.
        """
        # Other threads may set marks meanwhile. `copy()` is atomic; `list(d.items())` creates tuples, each of which may
        # trigger the garbage collector, whose callbacks and finalizers let another thread run.
        return {
            "format": FORMAT,
            "pid": os.getpid(),
            "spans": [span.to_dict() for span in sorted(self.spans, key=lambda span: (span.start, -span.end))],
            "later": self._sums(),
            "marks": {name: round(at, 6) for name, at in self.marks.copy().items()},
            "memory": {name: memory.to_dict() for name, memory in self.memory.copy().items()} | {
                "now": Memory.now().to_dict()
            },
        }  # fmt: skip

    def _sums(self) -> list[dict[str, Any]]:
        with self._lock:
            sums = [
                {"name": name, "model": model, "count": each.count, "seconds": round(each.seconds, 6),
                 "longest": round(each.longest, 6)}
                for (name, model), each in self.later.copy().items()
            ]  # fmt: skip
        return sorted(sums, key=lambda each: (str(each["name"]), str(each["model"] or "")))


class _SpanContext:
    """The result of `span()`: reusable and reentrant, also by many threads at once."""

    def __init__(self, timeline: Timeline, name: str, model: str | None) -> None:
        self._timeline, self._name, self._model = timeline, name, model
        self._of_thread = threading.local()

    def __enter__(self) -> None:
        context = self._timeline._record(self._name, self._model)
        self._of_thread.__dict__.setdefault("open", []).append(context)
        context.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._of_thread.open.pop().__exit__(*error)

    def __call__(self, function: F) -> F:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            with self._timeline._record(self._name, self._model):
                return function(*args, **kwargs)

        return timed  # type: ignore[return-value]


process = Timeline()
"""The timeline of this process."""

span = process.span
mark = process.mark


def restart_in_child() -> None:
    """Reset the timeline in a forked child, to start from the child's birth."""
    process.birth = _birth()
    process._lock = threading.RLock()  # another thread of the parent may have held it
    process.spans.clear()
    process.later.clear()
    process.marks.clear()
    process.memory.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=restart_in_child)
