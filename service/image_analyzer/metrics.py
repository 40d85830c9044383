"""The service's figures in Prometheus' text format (version 0.0.4)."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus

from prebake import State, Status
from prebake.telemetry.timeline import Memory, Timeline


@dataclass
class Outcome:
    """How one request ended."""

    status: HTTPStatus = HTTPStatus.OK


class Counts:
    """Requests by path and status, and the seconds spent on each path."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests: dict[tuple[str, int], int] = defaultdict(int)
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def time(self, path: str) -> Iterator[Outcome]:
        """Count one request; its block sets the outcome's status where it is not 200."""
        outcome, started = Outcome(), time.perf_counter()
        try:
            yield outcome
        finally:
            with self._lock:
                self.requests[path, outcome.status.value] += 1
                self.seconds[path] += time.perf_counter() - started


def text(statuses: Iterable[Status], timeline: Timeline, counts: Counts, *, ready: bool) -> str:
    """All figures, one a line, each with its type and help."""
    statuses, memory = list(statuses), Memory.now()
    families: list[tuple[str, str, str, list[tuple[dict[str, str], float]]]] = [
        ("prebake_ready", "gauge", "1 when /readyz says so", [({}, ready)]),
        ("prebake_model_state", "gauge", "1 for the state that the model is in",
         [({"model": s.name, "state": state.value}, s.state is state) for s in statuses for state in State]),
        ("prebake_model_load_seconds", "gauge", "Duration of the model's load",
         [({"model": s.name, "tier": s.tier or ""}, s.seconds) for s in statuses if s.seconds is not None]),
        ("prebake_model_fallback", "gauge", "1 where a faster tier was left",
         [({"model": s.name}, s.fallback_reason is not None) for s in statuses if s.state is State.READY]),
        ("prebake_start_seconds", "gauge", "From the birth of the process to the moment",
         [({"moment": name}, at) for name, at in timeline.marks.copy().items()]),
        ("prebake_memory_bytes", "gauge", "Memory of the process by kind",
         [({"kind": "anonymous"}, memory.anonymous), ({"kind": "file"}, memory.file),
          ({"kind": "peak_resident"}, memory.peak_rss)]),
        ("prebake_requests_total", "counter", "Requests answered",
         [({"path": path, "status": str(status)}, n) for (path, status), n in sorted(counts.requests.copy().items())]),
        ("prebake_request_seconds_total", "counter", "Time spent on requests",
         [({"path": path}, seconds) for path, seconds in sorted(counts.seconds.copy().items())]),
    ]  # fmt: skip
    lines = []
    for name, kind, meaning, samples in families:
        lines += [f"# HELP {name} {meaning}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{_labels(labels)} {float(value):.10g}" for labels, value in samples]
    return "\n".join(lines) + "\n"


def _labels(labels: dict[str, str]) -> str:
    def escape(value: str) -> str:
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return "{" + ",".join(f'{name}="{escape(value)}"' for name, value in labels.items()) + "}" if labels else ""
