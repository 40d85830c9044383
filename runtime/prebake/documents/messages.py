"""Parts of error messages: reasons, values, types, and the nearest known word."""

from __future__ import annotations

import json

from prebake.errors import PrebakeError

KINDS = {str: "a string", int: "a whole number", float: "a number", bool: "true or false",
          list: "a list", dict: "a table"}  # fmt: skip
"""Type of a value in a document → its name in messages."""


def reason(error: BaseException) -> str:
    """The error's text; for an OS error without its number and file name."""
    return (isinstance(error, OSError) and error.strerror) or str(error) or type(error).__name__


def one_line(error: BaseException) -> str:
    """An error on one line of at most 300 characters, with its class unless it is a PrebakeError."""
    text = " ".join(reason(error).split())
    kind = "" if isinstance(error, PrebakeError) else f"{type(error).__name__}: "
    return kind + (text if len(text) <= 300 else text[:297] + "...")


def nearest(word: str, known: list[str] | tuple[str, ...]) -> str:
    """`: did you mean "…"?` if a known word is close, else an empty string."""
    import difflib  # only for messages

    found = difflib.get_close_matches(word, known, n=1)
    return f': did you mean "{found[0]}"?' if found else ""


def listed(known: list[str] | tuple[str, ...]) -> str:
    """` (known: a, b)`, at most 20 of them; empty if there is none."""
    more = f" and {len(known) - 20} more" if len(known) > 20 else ""
    return f" (known: {', '.join(known[:20])}{more})" if known else ""


def short(text: str) -> str:
    """A key or name as messages show it, cut at 80 characters."""
    return text if len(text) <= 80 else text[:77] + "..."


def quote(value: str) -> str:
    """A value as messages show it: in double quotes, cut at 80 characters, lone surrogates escaped."""
    text = json.dumps(value if len(value) <= 80 else value[:77] + "...", ensure_ascii=False)
    return text.encode(errors="backslashreplace").decode()


def printable(line: str) -> str:
    """A line for a terminal, with text of untrusted files in it: control characters and lone surrogates are escaped."""
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in line)


def describe(value: object) -> str:
    """A value and its type as messages show them."""
    for kind in (bool, int, float, list, dict):
        if isinstance(value, kind):
            return f"{KINDS[kind]} ({spelled(value)})" if kind in (bool, int, float) else KINDS[kind]
    if isinstance(value, str):
        return f"the string {quote(value)}"
    return "nothing" if value is None else f"a {type(value).__name__}"


def spelled(value: object) -> str:
    """A number as messages show it. A large integer is shown in hexadecimal and cut at 80 characters, because Python
    refuses to print more than 4,300 decimal digits and TOML allows such numbers in hexadecimal."""
    if isinstance(value, int) and value.bit_length() > 256:
        text = f"{value:#x}"
        return text if len(text) <= 80 else text[:77] + "..."
    return repr(value)
