"""Colour on terminals, where nobody asked for none: https://no-color.org."""

from __future__ import annotations

import os
from typing import TextIO

_CODES = {"bold": "1", "red": "31", "green": "32", "yellow": "33"}


def paint(text: str, style: str, stream: TextIO) -> str:
    """The text in a style, one of `bold`, `red`, `green`, `yellow`, if `stream` is a terminal that shows it.

    Any value of NO_COLOR but the empty one turns it off, and so does TERM=dumb.
    """
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb" or not stream.isatty():
        return text
    return f"\033[{_CODES[style]}m{text}\033[0m"
