"""How much memory this process may still use: the least of what the system and each of its control groups leave.

Page cache that was not used again (`inactive_file`) counts as free: the kernel gives it up first, and a group that has
read much would seem full otherwise. This is how Kubernetes computes a working set.

Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst of Linux; man 5 proc_meminfo.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import NamedTuple


class _Version(NamedTuple):
    """Names of the files in a group's folder."""

    limits: tuple[str, ...]
    usage: str
    inactive: str
    """A line of `memory.stat`: with the groups below it, as the usage is."""


_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version(("memory.max", "memory.high"), "memory.current", "inactive_file")


def free_memory(root: Path = Path("/")) -> int | None:
    """Bytes that are free; None where the system tells nothing (not Linux).

    `root` is where `proc` and `sys` are.
    """
    found = [_available(root), *(_left(folder, version) for folder, version in _groups(root))]
    known = [free for free in found if free is not None]
    return max(0, min(known)) if known else None


def _groups(root: Path) -> Iterator[tuple[Path, _Version]]:
    """The folders of the groups that account for this process's memory, from its own outwards."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, version = mounted, _V2
        elif "memory" in controllers.split(","):
            mount, version = mounted / "memory", _V1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        if ".." in group.parts:  # outside what this namespace sees
            group = PurePosixPath()
        # a container may see its own group as the mount's root and be told its path on the host, which is not there
        for folder in (group, *group.parents):
            yield mount / folder, version


def _left(folder: Path, version: _Version) -> int | None:
    """What a group leaves; None where it has no limit, or is not there."""
    limits = [limit for name in version.limits if (limit := _number(folder / name)) is not None]
    used = _number(folder / version.usage)
    if not limits or used is None:
        return None
    return min(limits) - used + _line(folder / "memory.stat", version.inactive, 0)


def _available(root: Path) -> int | None:
    kilobytes = _line(root / "proc/meminfo", "MemAvailable:", -1)
    return None if kilobytes < 0 else kilobytes * 1024


def _number(path: Path) -> int | None:
    """None where the file is not there, or says `max`."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _line(path: Path, name: str, missing: int) -> int:
    """The number that follows the name in a file of such lines."""
    try:
        words = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return next((int(line[1]) for line in words if line[:1] == [name]), missing)
    except (OSError, ValueError, IndexError):
        return missing
