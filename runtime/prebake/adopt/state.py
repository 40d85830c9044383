"""What an operator wants to know of a process: as JSON, as readiness, as metrics for Prometheus.

The reporter and the middleware answer with these; making them loads nothing and imports no framework.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from typing import Any

from prebake.adopt import loads, redirect
from prebake.adopt.catalogue import catalogue
from prebake.telemetry import report, timeline

Answer = tuple[int, str, bytes]
"""HTTP status, content type and body."""


def startup() -> dict[str, Any]:
    """The document of `/startup`: timeline, deferred imports, the baked models, and what was loaded.

    Times are in seconds, memory in bytes.
    """
    told = report.document(timeline.process, ())
    told["command"] = list(sys.orig_argv)
    told["models"] = _models()
    told["loads"] = [load.to_dict() for load in loads.loads.copy()]
    told["counts"] = [
        {"library": library, "outcome": outcome, "loads": number}
        for (library, outcome), number in sorted(loads.counts.copy().items())
    ]
    return told


def ready() -> bool:
    """Whether no load is under way."""
    return not redirect.under_way


def readiness() -> dict[str, Any]:
    """The document of `/readyz`."""
    return {"ready": ready(), "loading": sorted(redirect.under_way.copy().values()), "models": _models()}


def _models() -> dict[str, Any]:
    """Baked model → how its last load went; None if this process has not loaded it."""
    last = {load.model: load for load in loads.loads.copy() if load.model is not None}
    return {
        baked.name: {"outcome": load.outcome, "seconds": round(load.seconds, 6)}
        if (load := last.get(baked.name))
        else None
        for baked in catalogue().models
    }


def metrics() -> str:
    """The metrics in Prometheus' text format (version 0.0.4)."""
    marks = timeline.process.marks.copy()
    lines = [
        "# HELP prebake_loads_total Models that libraries loaded, by what served them.",
        "# TYPE prebake_loads_total counter",
        *(
            f'prebake_loads_total{{library="{_escaped(library)}",outcome="{_escaped(outcome)}"}} {number}'
            for (library, outcome), number in sorted(loads.counts.copy().items())
        ),
        "# HELP prebake_load_seconds Duration of each baked model's last load.",
        "# TYPE prebake_load_seconds gauge",
        *(
            f'prebake_load_seconds{{model="{_escaped(name)}",outcome="{_escaped(load["outcome"])}"}} {load["seconds"]}'
            for name, load in _models().items()
            if load is not None
        ),
        "# HELP prebake_ready Whether no load is under way.",
        "# TYPE prebake_ready gauge",
        f"prebake_ready {int(ready())}",
    ]
    if (at := marks.get(timeline.READY)) is not None:
        lines += [
            "# HELP prebake_ready_seconds Time from the birth of the process until it was ready.",
            "# TYPE prebake_ready_seconds gauge",
            f"prebake_ready_seconds {round(at, 6)}",
        ]
    return "\n".join(lines) + "\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _json(document: Mapping[str, Any]) -> bytes:
    return (json.dumps(document, default=str, ensure_ascii=False) + "\n").encode()


def answer_startup() -> Answer:
    return 200, "application/json", _json(startup())


def answer_ready() -> Answer:
    document = readiness()
    return (200 if document["ready"] else 503), "application/json", _json(document)


def answer_metrics() -> Answer:
    return 200, "text/plain; version=0.0.4; charset=utf-8", metrics().encode()


ANSWERS: Mapping[str, Callable[[], Answer]] = {
    "/startup": answer_startup, "/readyz": answer_ready, "/metrics": answer_metrics,
}  # fmt: skip
"""Path → what answers a GET."""
