"""How many processors this process may use: its affinity, and the quota of its control groups.

Documentation/admin-guide/cgroup-v2.rst (`cpu.max`) and scheduler/sched-bwc.rst (`cpu.cfs_quota_us`) of Linux.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

from prebake.cgroup import groups


def processors(root: Path = Path("/")) -> int:
    """At least 1. `root` is the folder with `proc` and `sys`."""
    quotas = [math.ceil(quota) for quota in _quotas(root)]
    return max(1, min([len(os.sched_getaffinity(0)), *quotas]))


def _quotas(root: Path) -> Iterator[float]:
    for folder, version in groups("cpu", root):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota = (folder / "cpu.cfs_quota_us").read_text(encoding="ascii").strip()
                period = (folder / "cpu.cfs_period_us").read_text(encoding="ascii").strip()
            if quota not in ("max", "-1") and int(period) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue
