"""The limit on the worker's memory.

RLIMIT_DATA also counts private writable mappings, and frameworks map checkpoints this way: file pages that take no
memory until they are written to. So the limit is the available memory plus room for such mappings.
"""

from __future__ import annotations

import os
from pathlib import Path

from prebake.cgroup import free_memory
from prebake.documents.messages import quote
from prebake.errors import ConfigError

ENV = "PREBAKE_WORKER_MEMORY"
"""Variable that overrides the limit, in bytes; 0 means no limit."""

_MAPPINGS = 8
"""Mappings, in sizes of the checkpoint: the checkpoint, and the baked file twice for the proof, where values may be up
to four times as wide."""
_RESERVED, _RESERVED_BY_PROCESSOR = 1 << 30, 64 << 20
"""Bytes that frameworks and threads reserve but do not use."""


def limit(checkpoint: Path) -> int | None:
    """Bytes for RLIMIT_DATA of a worker that loads this folder; None for no limit.

    Raises ConfigError if the environment variable is not a number.
    """
    declared = os.environ.get(ENV, "")
    if declared:
        if not declared.isascii() or not declared.isdigit():
            raise ConfigError(f"{ENV}: {quote(declared)} is not a number of bytes (0: no limit)")
        return int(declared) or None
    free = free_memory()
    if free is None:
        return None
    files = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return free + _MAPPINGS * files + _RESERVED + _RESERVED_BY_PROCESSOR * (os.cpu_count() or 1)
