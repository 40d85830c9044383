"""What the restorer leaves for the restored process: `struct handover` of `native/table.h`."""

from __future__ import annotations

import ctypes
import os
import struct
import time
from dataclasses import dataclass

from prebake.telemetry.restored import Restored

_HEAD = struct.Struct("<5QiIIIQ")


@dataclass(frozen=True, kw_only=True, slots=True)
class Handover:
    """The container's arguments and environment, and when the steps of the restore were done."""

    arguments: list[str]
    environment: list[bytes]
    report: int
    """Descriptor of the pipe to the supervisor."""
    restored: Restored

    @classmethod
    def read(cls, address: int) -> Handover:
        """Read it from memory, where it stays: the kernel shows its strings in `/proc/PID/cmdline` and `environ`."""
        resumed = time.monotonic()
        size, began, checked, mapped, jumped, report, argc, envc, vdso, text = _HEAD.unpack(
            ctypes.string_at(address, _HEAD.size)
        )
        strings = ctypes.string_at(address + text, size - text).split(b"\0")
        steps = [("check", checked / 1e9), ("map", mapped / 1e9), ("vDSO, heap", jumped / 1e9), ("go on", resumed)]
        return cls(
            arguments=[os.fsdecode(each) for each in strings[:argc]], environment=strings[argc : argc + envc],
            report=report,
            restored=Restored(began=began / 1e9, steps=steps, vdso="moved" if vdso else "replaced"),
        )  # fmt: skip
