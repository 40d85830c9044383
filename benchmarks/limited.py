"""Simulates a disk of a given speed: limits reads with a control group, version 1 or 2 (needs root)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from types import TracebackType

GROUPS = Path("/sys/fs/cgroup")


def disk_of(place: Path) -> Path:
    """The sysfs folder of the disk that contains a file or folder; its name is the device's."""
    device = place.stat().st_dev
    disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
    return disk.parent if (disk / "partition").exists() else disk


class Limited:
    """During the block, limits reads of this process and its children from the disk of `place`."""

    def __init__(self, place: Path, read_bps: int) -> None:
        self._number = (disk_of(place) / "dev").read_text().strip()
        self._first = (GROUPS / "blkio").is_dir()
        self._group = (GROUPS / "blkio" if self._first else GROUPS) / f"prebake-benchmark-{os.getpid()}"
        self._read_bps = read_bps

    def __enter__(self) -> Limited:
        self._before = Path("/proc/self/cgroup").read_text()
        self._group.mkdir()
        if self._first:
            (self._group / "blkio.throttle.read_bps_device").write_text(f"{self._number} {self._read_bps}")
        else:
            (self._group / "io.max").write_text(f"{self._number} rbps={self._read_bps}")
        (self._group / "cgroup.procs").write_text(str(os.getpid()))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for line in self._before.splitlines():
            _, kinds, path = line.split(":", 2)
            if kinds in ("blkio", ""):
                hierarchy = GROUPS / "blkio" if kinds else GROUPS
                with suppress(OSError):
                    (hierarchy / path.lstrip("/") / "cgroup.procs").write_text(str(os.getpid()))
        with suppress(OSError):
            self._group.rmdir()

    def read(self) -> int:
        """Bytes read from the disk so far."""
        if self._first:
            lines = (self._group / "blkio.throttle.io_service_bytes").read_text().splitlines()
            found = (line.split() for line in lines)
            return sum(int(line[2]) for line in found if line[:2] == [self._number, "Read"])
        for line in (self._group / "io.stat").read_text().splitlines():
            number, *fields = line.split()
            if number == self._number:
                return int(dict(field.split("=") for field in fields)["rbytes"])
        return 0
