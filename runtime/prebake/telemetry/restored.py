"""How this process came about: restored from a snapshot, or started although there is one, and why."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from typing import Any

from prebake.telemetry.timeline import Span, Timeline

ENV_REFUSED = "PREBAKE_SNAPSHOT_REFUSED"
"""Set by `prebake-restore`: why the process was started the ordinary way."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """The restore of this process."""

    began: float
    """On the clock of `time.monotonic`."""
    steps: list[tuple[str, float]]
    """Name and end of each step, on the same clock, in their order."""
    vdso: str
    """`moved`, or `replaced` by system calls (the kernel's is another one than at the dump)."""

    def step(self, name: str) -> None:
        """The step of this name is done."""
        self.steps.append((name, time.monotonic()))

    def put_into(self, timeline: Timeline) -> None:
        """Have the timeline begin with this restore."""
        timeline.birth = start = self.began
        for name, end in self.steps:
            timeline.spans.append(Span(name=f"restore: {name}", model=None, start=start - self.began,
                                       end=end - self.began, thread="MainThread", depth=0))  # fmt: skip
            start = end


_restored: Restored | None = None


def set_restored(restored: Restored) -> None:
    """Remember how this process was restored."""
    global _restored
    _restored = restored


def was_restored() -> bool:
    """Whether this process was restored."""
    return _restored is not None


def document() -> dict[str, Any] | None:
    """For `/startup`; None if there was no snapshot to restore."""
    if _restored is not None:
        last = _restored.steps[-1][1] if _restored.steps else _restored.began
        return {"tier": "snapshot", "reason": None, "seconds": round(last - _restored.began, 6), "vdso": _restored.vdso}
    reason = os.environ.get(ENV_REFUSED)
    return {"tier": "ordinary", "reason": reason, "seconds": None, "vdso": None} if reason else None
