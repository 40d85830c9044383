"""The control groups of this process, and its free memory: the minimum over the system and each of these groups.

Inactive page cache (`inactive_file`) counts as free: the kernel reclaims it first, and a group that has read many files
would look full otherwise. Kubernetes computes a working set the same way.

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
    """Name of a line in `memory.stat`; like the usage, it includes child groups."""


_V1 = _Version(("memory.limit_in_bytes",), "memory.usage_in_bytes", "total_inactive_file")
_V2 = _Version(("memory.max", "memory.high"), "memory.current", "inactive_file")


_VERSIONS = {1: _V1, 2: _V2}


def free_memory(root: Path = Path("/")) -> int | None:
    """Free bytes, or None if the system does not report them (not Linux).

    `root` is the folder with `proc` and `sys`.
    """
    found = [_available(root), *(_left(*found) for found in groups("memory", root))]
    known = [free for free in found if free is not None]
    return max(0, min(known)) if known else None


def groups(controller: str, root: Path) -> Iterator[tuple[Path, int]]:
    """The folders of this process's groups that have the controller, from its own to the root, and their version."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return
    mounted = root / "sys/fs/cgroup"
    for line in lines:
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0" and not controllers:
            mount, version = mounted, 2
        elif controller in controllers.split(","):
            mount, version = mounted / controller, 1
        else:
            continue
        group = PurePosixPath(path.lstrip("/"))
        if ".." in group.parts:  # outside this cgroup namespace
            group = PurePosixPath()
        # In a container, the mount's root may be its own group while the path is that on the host, which is not
        # mounted.
        for folder in (group, *group.parents):
            yield mount / folder, version


def _left(folder: Path, number: int) -> int | None:
    """Free bytes of a group; None if it has no limit or does not exist."""
    version = _VERSIONS[number]
    limits = [limit for name in version.limits if (limit := _number(folder / name)) is not None]
    used = _number(folder / version.usage)
    if not limits or used is None:
        return None
    return min(limits) - used + _line(folder / "memory.stat", version.inactive, 0)


def _available(root: Path) -> int | None:
    kilobytes = _line(root / "proc/meminfo", "MemAvailable:", -1)
    return None if kilobytes < 0 else kilobytes * 1024


def _number(path: Path) -> int | None:
    """The number in a file; None if the file is missing or contains `max`."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _line(path: Path, name: str, missing: int) -> int:
    """The number after `name` in a file with one name and number per line."""
    try:
        words = [line.split() for line in path.read_text(encoding="ascii").splitlines()]
        return next((int(line[1]) for line in words if line[:1] == [name]), missing)
    except (OSError, ValueError, IndexError):
        return missing
