"""Why a command cannot be started, and what to do: the kernel's errors do not tell a missing interpreter from a missing
program, or a folder from a file without permission."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from prebake.documents.messages import reason

EMPTY = '""'
"""Stands for an empty name in messages."""


def why_unstartable(name: str, error: OSError | ValueError) -> str:
    """What is wrong with the command of this name, from the error of `exec` or `subprocess`, and what to do."""
    if not name:
        return "the command is an empty word"
    if isinstance(error, ValueError):  # a null character
        return f"not the name of a command: {error}"
    path = Path(name)
    if isinstance(error, (FileNotFoundError, NotADirectoryError)):
        return _not_found(name, path)
    if path.is_dir():
        return "cannot be executed: it is a folder"
    if path.is_file() and not os.access(path, os.X_OK):
        return f"cannot be executed: the file has no permission for it: chmod +x {name}{_by_python(name)}"
    if error.errno == errno.ENOEXEC:
        return (
            "cannot be executed: no program for this machine, and no script: its first line names no interpreter (#!)"
        )
    return f"cannot be executed: {reason(error)}"


def _not_found(name: str, path: Path) -> str:
    if "/" in name:
        if path.is_file():  # a script
            return "the program that its first line names is not found"
        return "command not found: there is no such file"
    if path.is_file():
        return f"command not found: a file here is started by ./{name}{_by_python(name)}"
    return "command not found: install what brings it into this environment, or give its path"


def _by_python(name: str) -> str:
    return f", or python {name}" if name.endswith(".py") else ""
