"""The TOML reader of the standard library, and tomli before Python 3.11; what it cannot hold is always one error."""

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
"""Levels of tables and arrays in one another: fewer than any Python follows, in C or in calls."""


class TOMLDecodeError(ValueError):
    """The text is no TOML, or more than Python can hold. (The parsers' own class of this name takes other arguments
    in each version.)"""


def loads(text: str) -> dict[str, Any]:
    """The document. Raises TOMLDecodeError, also where it nests more than 100 levels deep, or holds a number that
    Python reads and does not write (more than 4,300 digits, in hexadecimal)."""
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
    raise TOMLDecodeError(f"tables and arrays lie in one another more than {_DEEPEST} levels deep")
