"""How much memory the worker may allocate.

RLIMIT_DATA counts private writable mappings too, and frameworks map checkpoints that way: pages of files, which cost
no memory until they are written to. So the limit is what is available, and room for such mappings on top.
"""

from __future__ import annotations

import os
from pathlib import Path

from prebake.documents.messages import quote
from prebake.errors import ConfigError

ENV = "PREBAKE_WORKER_MEMORY"
"""Bytes that replace the limit; 0 for none."""

_MAPPINGS = 8
"""Of a checkpoint: itself, and twice the baked file to prove it, each value up to four times as wide."""
_RESERVED, _RESERVED_BY_PROCESSOR = 1 << 30, 64 << 20
"""Bytes that frameworks and threads reserve and do not touch."""
_UNLIMITED = 1 << 60
"""Version 1 of control groups says "no limit" with a number near 2^63."""


def limit(checkpoint: Path) -> int | None:
    """Bytes for RLIMIT_DATA of a worker that loads this folder; None for no limit.

    Raises ConfigError where the environment variable is no number.
    """
    declared = os.environ.get(ENV, "")
    if declared:
        if not declared.isascii() or not declared.isdigit():
            raise ConfigError(f"{ENV}: {quote(declared)} is no number of bytes (0: no limit)")
        return int(declared) or None
    free = available()
    if free is None:
        return None
    files = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return free + _MAPPINGS * files + _RESERVED + _RESERVED_BY_PROCESSOR * (os.cpu_count() or 1)


def available(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Bytes that this process can still allocate: of the machine, and of its control groups. None where unknown."""
    found = [_of_machine(proc), *_of_groups(proc, groups)]
    return min((free for free in found if free is not None), default=None)


def _of_machine(proc: Path) -> int | None:
    for line in _lines(proc / "meminfo"):
        name, _, rest = line.partition(":")
        if name == "MemAvailable":
            return int(rest.split()[0]) * 1024
    return None


def _of_groups(proc: Path, groups: Path) -> list[int]:
    """What each group of this process leaves, the groups around it included."""
    found = []
    for line in _lines(proc / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            top, names = groups / "memory", ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        elif not controllers:
            top, names = groups, ("memory.max", "memory.current", "inactive_file")
        else:
            continue
        # In a container the path may be the host's: what is not there is left out, and the top is the container's.
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            if (free := _of_group(folder, *names)) is not None:
                found.append(free)
            if folder == top:
                break
    return found


def _of_group(folder: Path, limit_name: str, usage_name: str, cached_name: str) -> int | None:
    limit_text, usage_text = _lines(folder / limit_name), _lines(folder / usage_name)
    if not limit_text or not usage_text or not limit_text[0].isdigit() or int(limit_text[0]) >= _UNLIMITED:
        return None
    cached = [int(line.split()[1]) for line in _lines(folder / "memory.stat") if line.split()[0] == cached_name]
    return max(0, int(limit_text[0]) - max(0, int(usage_text[0]) - sum(cached)))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return []
