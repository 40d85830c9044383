"""What the restorer leaves for the restored process: `struct handover` of `native/table.h`."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from dataclasses import dataclass

_HEAD = struct.Struct("<5QiIIIQ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """The container's arguments and environment, and when the steps of the restore were done."""

    arguments: list[str]
    environment: list[bytes]
    report: int
    """Descriptor of the pipe to the supervisor."""
    began: float
    """When the supervisor began, on the clock of `time.monotonic`."""
    steps: dict[str, float]
    """Name → seconds."""
    vdso_moved: bool

    @classmethod
    def read(cls, address: int) -> Handover:
        """Read it from memory, where it stays: the kernel shows its strings in `/proc/PID/cmdline` and `environ`."""
        resumed = time.monotonic_ns()
        size, began, checked, mapped, jumped, report, argc, envc, vdso, text = _HEAD.unpack(
            ctypes.string_at(address, _HEAD.size)
        )
        strings = ctypes.string_at(address + text, size - text).split(b"\0")
        return cls(
            arguments=[os.fsdecode(each) for each in strings[:argc]], environment=strings[argc : argc + envc],
            report=report, began=began / 1e9, vdso_moved=bool(vdso),
            steps={"check": (checked - began) / 1e9, "map": (mapped - checked) / 1e9, "finish": (jumped - mapped) / 1e9,
                   "resume": (resumed - jumped) / 1e9},
        )  # fmt: skip
