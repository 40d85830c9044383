"""Starts the command that dumps itself, and sees to it that the build ends: with a snapshot, or with an error.

The command gets an environment without secrets, no inherited descriptors, and a session of its own. Whatever it leaves
running is killed when it has ended, or has not dumped itself in time.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from prebake.errors import SnapshotError
from prebake.snapshot.environment import at_start, of_dump, with_own
from prebake.snapshot.point import ENV_DUMP

FILES = ("table", "memory.img", "snapshot.json")
NEVER = ("the service must call prebake.snapshot.here() once everything is loaded, and before it opens its port; "
         "uvicorn with one process needs no call")  # fmt: skip


def start(
    command: list[str],
    output: Path,
    variables: list[str],
    seconds: float,
    unstartable: Callable[[str, OSError | ValueError], Exception],
) -> int:
    """Run the command until it has dumped itself; returns its exit code, 0 only if there is a snapshot.

    Raises `unstartable(name, error)` if it can't be executed, OSError if the folder can't be written to, and
    SnapshotError if the command ends, or goes on, without a snapshot.
    """
    given = at_start()
    environment = of_dump(given, variables)
    declared = {"output": str(output), "command": command, "variables": variables, "environment": environment,
                "withheld": sorted({*given} - {*environment}), "parent": os.getpid()}  # fmt: skip
    output.mkdir(parents=True, exist_ok=True)
    for name in FILES:
        (output / name).unlink(missing_ok=True)  # a command that ends without a dump leaves no older one
    sys.stdout.flush()
    try:
        process = subprocess.Popen(
            command, env=with_own(environment) | {ENV_DUMP: json.dumps(declared)}, start_new_session=True
        )
    except (OSError, ValueError) as error:
        raise unstartable(command[0], error) from error
    code = _ended(process, seconds)
    if code is None:
        raise SnapshotError(f"snapshot: {' '.join(command)} runs, but has written none in {seconds:g} s: {NEVER}")
    if code == 0 and not (output / FILES[0]).exists():
        raise SnapshotError(f"snapshot: {' '.join(command)} has ended without one: {NEVER}")
    return code if code >= 0 else 128 - code


def _ended(process: subprocess.Popen[bytes], seconds: float) -> int | None:
    """The exit code, None if there was none in time. SIGTERM, sent by a child of the process too, ends it."""

    def stop(*_: object) -> None:
        raise SystemExit(1)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        signal.signal(signal.SIGTERM, before)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
