"""What this process loaded, as the hooks saw it.

A `Load` is one line of JSON in the file that `PREBAKE_OBSERVE` names: one `write` to a file opened with `O_APPEND`, so
several processes share the file.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from prebake.adopt import ENV_OBSERVE
from prebake.documents.messages import reason as os_reason
from prebake.documents.table import Table

logger = logging.getLogger(__name__)

MAPPED, FOLDER, ORIGINAL = "mapped", "baked folder", "original"
FAILED = "failed"
"""The load raised, and `reason` is what; the application may have caught it and gone on."""
OUTCOMES = (MAPPED, FOLDER, ORIGINAL, FAILED)

KEPT = 1_000
"""Loads kept individually, and messages logged as warnings; later ones are counted only. A service may load
another file for each request."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Load:
    """One load."""

    library: str
    function: str
    """As a user calls it: `AutoModel.from_pretrained` is `BertModel.from_pretrained`, which it calls."""
    uri: str | None = None
    """The source as in `models.toml`, with its revision; None if it is unknown."""
    class_: str | None = None
    """As in `models.toml`, with its family."""
    dtype: str | None = None
    detail: Mapping[str, Any] = field(default_factory=dict)
    """What else identifies the load, as JSON: languages, subfolder, file."""
    outcome: str = ORIGINAL
    """One of OUTCOMES."""
    model: str | None = None
    """The name of the baked model."""
    reason: str | None = None
    """Why the load was not mapped, or why it failed."""
    obstacle: str | None = None
    """Why the model cannot be baked: remote code, quantisation at load, GGUF."""
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return {
            "library": self.library,
            "function": self.function,
            "uri": self.uri,
            "class": self.class_,
            "dtype": self.dtype,
            "detail": dict(self.detail),
            "outcome": self.outcome,
            "model": self.model,
            "reason": self.reason,
            "obstacle": self.obstacle,
            "seconds": round(self.seconds, 6),
        }

    @classmethod
    def from_table(cls, table: Table) -> Load:
        """Raises DocumentError, which names the path in the document."""
        load = cls(
            library=table.take("library", str),
            function=table.take("function", str),
            uri=table.maybe("uri", str),
            class_=table.maybe("class", str),
            dtype=table.maybe("dtype", str),
            detail=table.take("detail", dict, {}),
            outcome=table.one_of("outcome", OUTCOMES, ORIGINAL),
            model=table.maybe("model", str),
            reason=table.maybe("reason", str),
            obstacle=table.maybe("obstacle", str),
            seconds=table.take("seconds", float, 0.0),
        )
        table.finish()
        return load

    @property
    def line(self) -> str:
        """One line of JSON, with its end."""
        return json.dumps(self.to_dict(), default=str) + "\n"

    @property
    def subject(self) -> str:
        """What was loaded, for messages."""
        return self.uri or f"a model of {self.library}"


loads: list[Load] = []
"""The first `KEPT` loads of this process; a forked child begins with those of its parent."""

counts: Counter[tuple[str, str]] = Counter()
"""Library and outcome → number of all loads."""

_said: set[str] = set()
_thread = threading.local()


@contextmanager
def inside(*, view: bool = False) -> Iterator[None]:
    """In this thread, loads are neither redirected nor recorded: they belong to a load under way.

    With `view`, files of baked repositories come from the view all the same.
    """
    before = is_inside(), reads_view()
    _thread.inside, _thread.view = True, view
    try:
        yield
    finally:
        _thread.inside, _thread.view = before


def is_inside() -> bool:
    """Whether this thread is inside a load."""
    return getattr(_thread, "inside", False)


def reads_view() -> bool:
    """Whether this thread is inside a load whose files come from the view."""
    return getattr(_thread, "view", False)


def record(load: Load) -> None:
    """Keep the load, log it, and write it to the file that `PREBAKE_OBSERVE` names."""
    if len(loads) < KEPT:
        loads.append(load)
    counts[load.library, load.outcome] += 1
    if path := os.environ.get(ENV_OBSERVE):
        append(path, load.line)
        return
    _say(load)


def _say(load: Load) -> None:
    """Log the load: a mapped one as information, every other once for each model, as a warning."""
    if load.outcome == MAPPED or (load.outcome == FOLDER and load.reason is None):
        logger.info("%s: %s: %s in %.3f s", load.model, load.subject, load.outcome, load.seconds)
        return
    if load.outcome == FAILED:
        text = f"{load.subject}: {load.library} failed to load it: {load.reason}"
    elif load.outcome == FOLDER:
        text = f"{load.model}: {load.subject} loaded by {load.library} from the baked folder: {load.reason}"
    else:
        text = f"{load.subject}: not baked ({load.reason}): loaded by {load.library} as without Prebake"
    if text not in _said and len(_said) < KEPT:
        _said.add(text)
        logger.warning("%s", text)


def append(path: str, line: str) -> None:
    """Append the line to a file that several processes share."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            os.write(descriptor, line.encode())
        finally:
            os.close(descriptor)
    except OSError as error:
        logger.warning("%s: a line is not recorded: %s", path, os_reason(error))
