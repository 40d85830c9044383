"""The TOML reader of the standard library, and tomli before Python 3.11; what it cannot hold is always one error."""

from __future__ import annotations

import json
import sys
from typing import Any

if sys.version_info >= (3, 11):
    from tomllib import TOMLDecodeError
    from tomllib import loads as _loads
else:
    from tomli import TOMLDecodeError  # type: ignore[import-not-found, unused-ignore]
    from tomli import loads as _loads

__all__ = ["TOMLDecodeError", "loads"]


def loads(text: str) -> dict[str, Any]:
    """The document. Raises TOMLDecodeError, also where it nests deeper than Python follows, or holds a number that
    Python reads and does not write (more than 4,300 digits, in hexadecimal)."""
    try:
        document: dict[str, Any] = _loads(text)
        json.dumps(document, default=str)
    except (ValueError, RecursionError) as error:
        raise error if isinstance(error, TOMLDecodeError) else TOMLDecodeError(str(error)) from error
    return document
