"""A factory of the torch family that looks for secrets from inside the worker, and prints where it found some."""

from __future__ import annotations

import ctypes
import json
import os
import socket
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from torch import nn

SECRET = "planted-5f2d"
"""Begins every secret that tests plant; assembled where it is searched for, so that this file is no finding."""
PREFIX = "places with secrets: "


def look(port: int, files: list[str]) -> nn.Module:
    """Search this process, all others, the given files and HOME; then try to reach a server of the parent's."""
    found = [name for name, value in os.environ.items() if SECRET in value]
    for path in (*_of_processes(), *map(Path, files), *Path.home().rglob("*")):
        try:
            if SECRET.encode() in path.read_bytes():
                found.append(str(path))
        except OSError:
            pass
    if _memory_of(os.getppid()):
        found.append("memory of the parent")
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
        found.append("network")
    except OSError:
        pass
    print(PREFIX + json.dumps(found))
    return nn.Linear(3, 2)


def large(gigabytes: int) -> nn.Module:
    return nn.Linear(gigabytes << 14, 1 << 14)


def crash() -> nn.Module:
    ctypes.string_at(0)
    return nn.Linear(3, 2)


def wait() -> nn.Module:
    """Say so, and wait until killed."""
    print(PREFIX + "waiting", file=sys.stderr, flush=True)
    threading.Event().wait()
    return nn.Linear(3, 2)


def write(folders: list[str]) -> nn.Module:
    """Try to make, change and remove files in each folder, which has one named `there`; print what succeeded."""
    tries = {"make HOME": lambda: (Path.home() / "made").write_text("")}
    tries["make TMPDIR"] = lambda: (Path(tempfile.gettempdir()) / "made").write_text("")
    for folder in map(Path, folders):
        tries |= {
            f"make {folder}": lambda folder=folder: (folder / "made").write_text(""),  # type: ignore[misc]
            f"change {folder}": lambda folder=folder: (folder / "there").open("r+b").close(),  # type: ignore[misc]
            f"move {folder}": lambda folder=folder: (folder / "there").rename(folder / "gone"),  # type: ignore[misc]
            f"see {folder}": lambda folder=folder: (folder / "there").read_bytes(),  # type: ignore[misc]
        }
    print(PREFIX + json.dumps([name for name, action in tries.items() if _succeeds(action)]))
    return nn.Linear(3, 2)


def _succeeds(action: Callable[[], object]) -> bool:
    try:
        action()
    except OSError:
        return False
    return True


def _of_processes() -> Iterator[Path]:
    for process in Path("/proc").glob("[0-9]*"):
        yield process / "environ"
        yield process / "cmdline"


def _memory_of(process: int) -> bool:
    try:
        with Path(f"/proc/{process}/mem").open("rb"):
            return True
    except OSError:
        return False
