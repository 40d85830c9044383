"""The service's metrics for Prometheus.

Requests are counted in plain dictionaries, because `prometheus_client` takes 70 ms to import. The first request for
`/metrics` imports it, not the start.
"""

from __future__ import annotations

import threading
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus
from itertools import accumulate
from typing import TYPE_CHECKING, cast

from prebake import State, Status, timeline

if TYPE_CHECKING:
    from prometheus_client import Metric
    from prometheus_client.registry import Collector

BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds in seconds, from a warm answer for a small picture to a request that waits for a model's load."""


@dataclass
class Outcome:
    """The result of one request."""

    status: HTTPStatus = HTTPStatus.OK


@dataclass
class Durations:
    """A histogram: the number of requests in each of `BUCKETS`; the last count is for all longer requests."""

    counts: list[int] = field(default_factory=lambda: [0] * (len(BUCKETS) + 1))
    sum: float = 0.0

    def add(self, seconds: float) -> None:
        self.counts[bisect_left(BUCKETS, seconds)] += 1
        self.sum += seconds


class Counts:
    """Number of requests by path and status, and durations by path. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: dict[tuple[str, int], int] = defaultdict(int)
        self._durations: dict[str, Durations] = defaultdict(Durations)

    def add(self, path: str, status: HTTPStatus, seconds: float | None = None) -> None:
        """Count one request. `seconds` is None if it was refused immediately, so that durations only include work."""
        with self._lock:
            self.requests[path, status.value] += 1
            if seconds is not None:
                self._durations[path].add(seconds)

    @contextmanager
    def time(self, path: str) -> Iterator[Outcome]:
        """Count and time one request; the block sets the outcome's status if it is not 200."""
        outcome, started = Outcome(), time.perf_counter()
        try:
            yield outcome
        finally:
            self.add(path, outcome.status, time.perf_counter() - started)

    def snapshot(self) -> tuple[dict[tuple[str, int], int], dict[str, Durations]]:
        """A consistent copy of both tables."""
        with self._lock:
            return dict(self.requests), {path: Durations([*d.counts], d.sum) for path, d in self._durations.items()}


class Figures:
    """All metrics, as a collector for a registry of `prometheus_client`."""

    def __init__(self, statuses: Iterable[Status], of: timeline.Timeline, counts: Counts, *, ready: bool) -> None:
        self._statuses, self._timeline, self._counts, self._ready = list(statuses), of, counts, ready

    def collect(self) -> Iterator[Metric]:
        yield from self._gauges()
        yield from self._requests()

    def _gauges(self) -> Iterator[Metric]:
        from prometheus_client.core import GaugeMetricFamily

        statuses, memory = self._statuses, timeline.Memory.now()
        families: list[tuple[str, str, list[str], list[tuple[list[str], float]]]] = [
            ("prebake_ready", "1 if the service is ready", [], [([], self._ready)]),
            ("prebake_model_state", "1 for the model's current state", ["model", "state"],
             [([s.name, state.value], s.state is state) for s in statuses for state in State]),
            ("prebake_model_load_seconds", "Duration of the model's load", ["model", "tier"],
             [([s.name, s.tier or ""], s.seconds) for s in statuses if s.seconds is not None]),
            ("prebake_model_fallback", "1 if a faster tier failed", ["model"],
             [([s.name], s.fallback_reason is not None) for s in statuses if s.state is State.READY]),
            ("prebake_start_seconds", "Seconds from the birth of the process to the mark", ["moment"],
             [([name], at) for name, at in self._timeline.marks.copy().items()]),
            ("prebake_memory_bytes", "Memory of the process by kind", ["kind"],
             [(["anonymous"], memory.anonymous), (["file"], memory.file), (["peak_resident"], memory.peak_rss)]),
        ]  # fmt: skip
        for name, meaning, labels, samples in families:
            gauge = GaugeMetricFamily(name, meaning, labels=labels)
            for values, value in samples:
                gauge.add_metric(values, float(value))
            yield gauge

    def _requests(self) -> Iterator[Metric]:
        from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily

        requests, durations = self._counts.snapshot()
        total = CounterMetricFamily("prebake_requests", "Requests answered", labels=["path", "status"])
        for (path, status), number in sorted(requests.items()):
            total.add_metric([path, str(status)], number)
        yield total
        seconds = HistogramMetricFamily(
            "prebake_request_seconds", "Duration of requests, without those refused immediately", labels=["path"]
        )
        bounds = [*map(str, BUCKETS), "+Inf"]
        for path, taken in sorted(durations.items()):
            seconds.add_metric([path], [*zip(bounds, accumulate(taken.counts), strict=True)], taken.sum)
        yield seconds


def exposition(figures: Figures, accept: str = "") -> tuple[bytes, str]:
    """All metrics as text, and the content type: OpenMetrics if the Accept header asks for it, else 0.0.4."""
    from prometheus_client import CollectorRegistry
    from prometheus_client.exposition import choose_encoder

    registry = CollectorRegistry(auto_describe=False)
    registry.register(cast("Collector", figures))
    encode, kind = choose_encoder(accept)
    return encode(registry), kind
