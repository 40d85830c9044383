"""Probes and memory of a container, from the starts that `prebake measure` wrote down.

The slowest start decides, times a margin: a node that pulls, reads from a slow disk or shares its processors is slower
than the machine that measured. A liveness probe must not end a process that is busy with a long request, and no probe
but the startup probe may see a start.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.documents.messages import quote
from prebake.documents.table import Table, read_json
from prebake.errors import ConfigError

FORMAT = 1
_LACKING = {
    "first_request": "send requests (prebake measure --request): the liveness probe must outlast the longest",
    "anonymous": "measure where the service's memory can be read",
}
"""Figures that a comparison may lack."""
_STEP = 16 << 20
"""Memory is rounded up to a multiple of this many bytes."""
_STARTUP_PERIOD = 1
_READY_PERIOD = 5
_LIVE_PERIOD = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """The starts of one service."""

    label: str
    starts: int
    ready: float
    """Seconds until ready, of the slowest start."""
    request: float
    """Seconds of the slowest request, the first one included."""
    anonymous: int
    """Most bytes of private memory."""
    file: int
    """Most bytes of mapped files: weights and libraries, shared by the containers of a node."""

    @classmethod
    def read(cls, path: Path, label: str | None = None) -> Measured:
        """The candidate (or the service with this label) of a `startup.json`.

        Raises DocumentError, and ConfigError for an unknown label.
        """
        table = read_json(path, FORMAT, "comparison of starts")
        label = label or table.take("candidate", str)
        samples, timelines = table.table("samples"), table.table("timelines")
        if label not in set(samples):
            raise ConfigError(f"{path}: has no service {quote(label)} (it has {', '.join(sorted(samples))})")
        starts = samples.items(label, _sample)
        if not starts:
            raise samples.fail(label, "is empty (expected at least one start)")
        moments = _moments(timelines.table(label)) if timelines.raw(label) is not None else []
        anonymous = max([start["anonymous"] for start in starts] + [moment["anonymous"] for moment in moments])
        peak = max(start["peak_memory"] for start in starts)
        return cls(
            label=label,
            starts=len(starts),
            ready=max(start["ready"] for start in starts),
            request=max(max(start["first_request"], start["steady_request"]) for start in starts),
            anonymous=int(anonymous),
            file=int(max([moment["file"] for moment in moments] or [max(0, peak - anonymous)])),
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Wanted:
    """What the settings are for."""

    margin: float = 3.0
    """Factor on measured times."""
    memory_margin: float = 1.25
    """Factor on measured private memory."""
    port: int = 8000
    ready_path: str = "/readyz"
    live_path: str = "/livez"


def settings(measured: Measured, wanted: Wanted) -> dict[str, Any]:
    """The container's `startupProbe`, `readinessProbe`, `livenessProbe` and `resources`."""
    for name, value in (("margin", wanted.margin), ("memory margin", wanted.memory_margin)):
        if not (math.isfinite(value) and value >= 1):
            raise ConfigError(f"the {name} {value:g} is not a number of at least 1")
    busy = math.ceil(measured.request * wanted.margin)
    answer = min(10, max(1, math.ceil(measured.request)))
    memory = _rounded(measured.anonymous * wanted.memory_margin + measured.file)
    return {
        "startupProbe": {
            **_http(wanted, wanted.ready_path),
            "periodSeconds": _STARTUP_PERIOD,
            "timeoutSeconds": answer,
            "failureThreshold": max(10, math.ceil(measured.ready * wanted.margin / _STARTUP_PERIOD)),
        },
        "readinessProbe": {
            **_http(wanted, wanted.ready_path),
            "periodSeconds": _READY_PERIOD,
            "timeoutSeconds": answer,
            "failureThreshold": 2,
        },
        "livenessProbe": {
            **_http(wanted, wanted.live_path),
            "periodSeconds": _LIVE_PERIOD,
            "timeoutSeconds": answer,
            "failureThreshold": max(3, math.ceil(busy / _LIVE_PERIOD) + 1),
        },
        # equal, so that the scheduler counts what the container may use; without its file memory, the weights would be
        # read from disk again and again
        "resources": {"requests": {"memory": memory}, "limits": {"memory": memory}},
    }


def grace(measured: Measured, wanted: Wanted, drain: float) -> int:
    """`terminationGracePeriodSeconds`: longer than the service drains, and than its longest request."""
    return math.ceil(max(drain, measured.request * wanted.margin)) + 10


def patch(container: Mapping[str, Any], *, name: str, container_name: str, grace_seconds: int) -> dict[str, Any]:
    """A strategic-merge patch for kustomize that gives a Deployment these settings."""
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": name},
        "spec": {
            "template": {
                "spec": {
                    "terminationGracePeriodSeconds": grace_seconds,
                    "containers": [{"name": container_name, **container}],
                }
            }
        },
    }


def reasons(measured: Measured, wanted: Wanted) -> Sequence[str]:
    """Where the settings come from, one line each."""
    return [
        f"prebake probes: {measured.starts} measured starts of {measured.label}",
        f"slowest start {measured.ready:.2f} s, slowest request {measured.request:.2f} s, times {wanted.margin:g}",
        f"memory: {measured.anonymous / 2**20:,.0f} MiB private times {wanted.memory_margin:g}, and "
        f"{measured.file / 2**20:,.0f} MiB of mapped files",
    ]


def _http(wanted: Wanted, path: str) -> dict[str, Any]:
    return {"httpGet": {"path": path, "port": wanted.port}}


def _rounded(size: float) -> str:
    return f"{math.ceil(size / _STEP) * (_STEP >> 20)}Mi"


def _sample(table: Table) -> dict[str, float]:
    figures = ("ready", "first_request", "steady_request", "peak_memory", "anonymous")
    for figure, mend in _LACKING.items():
        if table.raw(figure) is None:
            raise table.fail(figure, f"was not measured: {mend}")
    sample = {figure: table.take(figure, float) for figure in figures}
    for figure, value in sample.items():
        if not (math.isfinite(value) and value > 0):
            raise table.fail(figure, f"{value:g} is not above 0")
    return sample


def _moments(timeline: Table) -> list[dict[str, float]]:
    memory = timeline.table("memory", {})
    return [
        {key: memory.table(moment).take(key, float) for key in ("anonymous", "file")} for moment in memory
    ]  # fmt: skip
