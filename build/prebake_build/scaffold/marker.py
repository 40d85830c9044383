"""The line that says which template wrote a file, and how the file looked: tells edits from newer templates."""

from __future__ import annotations

import difflib
import hashlib
import re
from dataclasses import dataclass
from typing import Final, Literal

TEMPLATE: Final = 3
"""Raise it whenever a template changes."""

State = Literal["current", "edited", "outdated", "outdated and edited", "foreign"]

_MARKER = re.compile(r"prebake init, template (\d+), sha256:([0-9a-f]{16})")
_WRITTEN = re.compile(r"^# Written by: (prebake init .*)$", re.MULTILINE)


def mark(text: str, placeholder: str) -> str:
    """The text with the marker in place of `placeholder`. Its digest is of the text without the marker's line."""
    return text.replace(placeholder, f"prebake init, template {TEMPLATE}, sha256:{_digest(text, placeholder)}")


def _digest(text: str, line: str) -> str:
    rest = [other for other in text.splitlines() if line not in other]
    return hashlib.sha256("\n".join(rest).encode()).hexdigest()[:16]


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """How a file differs from what init writes now."""

    state: State
    """`current`: as written. `edited`: changed by its owner alone. `outdated`: init writes something else now; also
    `outdated and edited`. `foreign`: init did not write it."""
    diff: str
    """Unified diff from the file to what init writes now, for `patch -p0`."""


def compare(name: str, found: str, now: str) -> Drift:
    """Compare a file with what init writes now. `name` is for the diff."""
    was, new = _MARKER.search(found), _MARKER.search(now)
    assert new is not None
    lines = difflib.unified_diff(found.splitlines(), now.splitlines(), name, name, lineterm="")
    diff = "".join(f"{line}\n" for line in lines)
    if was is None:
        return Drift(state="foreign", diff=diff)
    edited = _digest(found, was[0]) != was[2]
    if _digest(found, was[0]) == new[2]:
        return Drift(state="current", diff="")
    if was[2] == new[2]:
        return Drift(state="edited", diff=diff)
    return Drift(state="outdated and edited" if edited else "outdated", diff=diff)


def written_by(text: str) -> str | None:
    """The command line that wrote the file."""
    found = _WRITTEN.search(text)
    return found[1] if found else None
