"""Parses and formats sizes in bytes."""

from __future__ import annotations

import re

from prebake.errors import ConfigError

_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(i?)b?", re.IGNORECASE)
_STEPS = " kmgt"


def parse_size(text: str, where: str) -> int:
    """`1.5 GB`, `512MiB` or `2048` as bytes, case-insensitive: `k` is 1,000 and `ki` is 1,024.

    Raises ConfigError whose message begins with `where`.
    """
    found = _SIZE.fullmatch(text.strip())
    if not found or (found[3] and not found[2]):
        raise ConfigError(f'{where}: "{text}" is not a size (expected for example "1.5 GB" or "512 MiB")')
    number, step, binary = found.groups()
    return int(float(number) * (1024 if binary else 1000) ** _STEPS.index(step.lower() or " "))


def format_size(size: int) -> str:
    """Bytes in decimal units with three digits, as registries show them: `1.23 GB`."""
    value = float(size)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
