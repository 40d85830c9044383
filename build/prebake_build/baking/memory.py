"""How much memory the worker may allocate.

RLIMIT_DATA counts private writable mappings too, and frameworks map checkpoints that way: pages of files, which cost
no memory until they are written to. So the limit is what is available, and room for such mappings on top.
"""

from __future__ import annotations

import os
from pathlib import Path

from prebake.cgroup import free_memory
from prebake.documents.messages import quote
from prebake.errors import ConfigError

ENV = "PREBAKE_WORKER_MEMORY"
"""Bytes that replace the limit; 0 for none."""

_MAPPINGS = 8
"""Of a checkpoint: itself, and twice the baked file to prove it, each value up to four times as wide."""
_RESERVED, _RESERVED_BY_PROCESSOR = 1 << 30, 64 << 20
"""Bytes that frameworks and threads reserve and do not touch."""


def limit(checkpoint: Path) -> int | None:
    """Bytes for RLIMIT_DATA of a worker that loads this folder; None for no limit.

    Raises ConfigError where the environment variable is no number.
    """
    declared = os.environ.get(ENV, "")
    if declared:
        if not declared.isascii() or not declared.isdigit():
            raise ConfigError(f"{ENV}: {quote(declared)} is no number of bytes (0: no limit)")
        return int(declared) or None
    free = free_memory()
    if free is None:
        return None
    files = sum(path.stat().st_size for path in checkpoint.rglob("*") if path.is_file())
    return free + _MAPPINGS * files + _RESERVED + _RESERVED_BY_PROCESSOR * (os.cpu_count() or 1)
