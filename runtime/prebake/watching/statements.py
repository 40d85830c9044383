"""What the processes of a checked service told (`prebake.adopt.checked`)."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prebake.adopt import checked
from prebake.adopt.loads import FAILED, FOLDER, MAPPED, Load
from prebake.documents.table import Table
from prebake.errors import PrebakeError
from prebake.telemetry.timeline import Memory, Span, Timeline

UNPREPARED = (
    "no Python process of the service found Prebake: install it in the environment in which the command runs; "
    "processes that are started with -I, -S or -E, containers and other software are not seen"
)
"""What is to say if `prepared` is False."""
PATIENCE = 20.0
"""Seconds in which a process tells: recorded reads of a large process take a few."""


@dataclass(frozen=True, kw_only=True)
class Statement:
    """What one process told."""

    pid: int
    program: str
    timeline: Timeline | None
    """None if it imported no framework."""
    loads: Sequence[Load]
    deferred: dict[str, Any]
    reads: str | None
    """What it read from disk, as a list for the read-ahead."""

    def marked(self, **marks: float) -> Statement:
        """With these moments of `time.monotonic` as marks, those before its birth left out."""
        if self.timeline is None:
            return self
        spans = Timeline(birth=self.timeline.birth, spans=self.timeline.spans, memory=self.timeline.memory)
        spans.marks = dict(self.timeline.marks)
        for name, at in marks.items():
            if at >= spans.birth:
                spans.marks[name.replace("_", " ")] = at - spans.birth
        return replace(self, timeline=spans)

    def document(self) -> dict[str, Any]:
        """As `/startup` shows a service: timeline, models with the outcome of their loads, deferred imports."""
        told = (self.timeline or Timeline()).to_dict()
        told["pid"] = self.pid
        told["memory"] = (
            {name: memory.to_dict() for name, memory in self.timeline.memory.items()} if self.timeline else {}
        )
        told["models"] = {
            load.model or load.subject: {
                "state": "ready", "required": True, "tier": _tier(load), "fallback_reason": load.reason,
                "seconds": round(load.seconds, 4), "error": None,
            }
            for load in self.loads
        }  # fmt: skip
        told["deferred"] = self.deferred
        return told


def _tier(load: Load) -> str:
    return load.outcome if load.outcome in (MAPPED, FOLDER, FAILED) else "not baked"


def prepared(folder: Path) -> bool:
    """Whether any process of the service was prepared, so that its loads are seen."""
    return any(folder.glob(f"*{checked.BEGUN}"))


def collect(folder: Path, alive: Callable[[], Sequence[int]]) -> list[Statement]:
    """Ask all processes for their statements, wait for those that are alive, and read them.

    In the order of their births; those that imported no framework last. Raises PrebakeError for a file that is not what
    this version writes.
    """
    (folder / checked.END).touch()
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        begun = {int(path.name.removesuffix(checked.BEGUN)) for path in folder.glob(f"*{checked.BEGUN}")}
        told = {int(path.stem) for path in folder.glob("*.json")}
        if not (begun - told) & set(alive()):
            break
        time.sleep(checked.POLL)
    statements = [_read(path) for path in sorted(folder.glob("*.json"))]
    return sorted(statements, key=lambda each: each.timeline.birth if each.timeline else float("inf"))


def _read(path: Path) -> Statement:
    try:
        table = Table(json.loads(path.read_text(encoding="utf-8")), path.name, PrebakeError)
        document = table.maybe("timeline", dict)
        return Statement(
            pid=table.take("pid", int),
            program=table.take("program", str),
            timeline=None if document is None else _timeline(document, table.take("birth", float)),
            loads=[Load.from_table(each) for each in table.items("loads", lambda load: load)] if document else [],
            deferred=table.take("deferred", dict, {}),
            reads=table.maybe("reads", str),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PrebakeError(f"{path.name}: is not what a process of this Prebake tells: {error}") from error


def _timeline(document: dict[str, Any], birth: float) -> Timeline:
    made = Timeline(birth=birth, spans=[Span(**span) for span in document["spans"]])
    made.marks = dict(document["marks"])
    made.memory = {name: Memory(**memory) for name, memory in document["memory"].items()}
    return made
