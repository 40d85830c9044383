"""Reads TOML with the standard library, or tomli before Python 3.11; every failure is a TOMLDecodeError."""

from __future__ import annotations

import json
import sys
from typing import Any, Final

if sys.version_info >= (3, 11):
    from tomllib import loads as _loads
else:
    from tomli import loads as _loads  # type: ignore[import-not-found, unused-ignore]

__all__ = ["TOMLDecodeError", "loads"]

_DEEPEST: Final = 100
"""Nesting levels of tables and arrays: below the recursion limits of every Python version."""


class TOMLDecodeError(ValueError):
    """The text is not TOML, or exceeds Python's limits. (The constructor of the parsers' own class differs between
    versions.)"""


def loads(text: str) -> dict[str, Any]:
    """Parse a document. Raises TOMLDecodeError, also for more than 100 levels of nesting, and for a hexadecimal number
    that Python can read but not print (more than 4,300 decimal digits)."""
    try:
        document: dict[str, Any] = _loads(text)
        _refuse_depth(document)
        json.dumps(document, default=str)
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, TOMLDecodeError) else TOMLDecodeError(str(error)) from error
    return document


def _refuse_depth(document: dict[str, Any]) -> None:
    level: list[Any] = [document]
    for _ in range(_DEEPEST):
        parts = [value.values() if isinstance(value, dict) else value for value in level]
        level = [item for part in parts for item in part if isinstance(item, (dict, list))]
        if not level:
            return
    raise TOMLDecodeError(f"tables and arrays are nested more than {_DEEPEST} levels deep")
