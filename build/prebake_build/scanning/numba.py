"""What numba compiled of a service, and the list of it that the image's build reads (`prebake.startup.compiled`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from prebake.startup.compiled import LIST, Entry, read_list

_HEADER: Final = (
    "# What numba compiles of this service's packages, as `prebake scan` saw it: the image's build compiles it once.\n"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Compiled:
    """What one start of the service compiled."""

    entries: Sequence[Entry] = ()
    notes: Sequence[str] = ()
    """What a build can't compile, one sentence each."""


def read_seen(path: Path) -> Compiled:
    """What the hook has written (`prebake.adopt.hooks.numba`); several processes may have seen the same."""
    try:
        lines = sorted(set(path.read_text(encoding="utf-8").splitlines()))
    except FileNotFoundError:
        return Compiled()
    notes = [line.removeprefix("#").strip() for line in lines if line.startswith("#")]
    entries = read_list("\n".join(lines), str(path))
    return Compiled(entries=sorted(entries, key=lambda each: each.function is not None), notes=notes)


def merge(before: str, entries: Sequence[Entry]) -> str:
    """The list with the entries that it lacks; what stands in it stays."""
    known = {each.line for each in read_list(before, LIST)}
    missing = [f"{each.line}\n" for each in entries if each.line not in known]
    if not missing:
        return before
    begin = before or _HEADER
    return "".join([begin, "" if begin.endswith("\n") else "\n", *missing])
