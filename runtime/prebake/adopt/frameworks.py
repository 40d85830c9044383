"""What happens at the first import of a framework: the quick start, and the imports on the timeline.

The garbage collector is paused from the first framework's import until the first load of a model ends, or for `PAUSE`
seconds. A forked child starts with the collector as it was before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from prebake.adopt import ENV_REPORT, ENV_SERVICE
from prebake.families import compat
from prebake.startup import quickstart, readahead
from prebake.telemetry import timeline

if TYPE_CHECKING:
    from prebake.adopt.report import Reporter

PAUSE = 10.0
"""Seconds. Imports of frameworks take less; a process that only imports them must not grow for ever."""

_PAUSED = "frameworks"


class _State:
    lock = threading.Lock()
    begun = False


def importing(name: str) -> AbstractContextManager[object]:
    """The span of a framework's import, for `imports.around_import`. The first call prepares the process."""
    begin()
    return _importing(name)


@contextmanager
def _importing(name: str) -> Iterator[None]:
    with timeline.span(f"import {name}"):
        if name == "torchvision":
            compat.torchvision_operators(being_imported=True)
        yield


def begin() -> None:
    """Prepare the process for its frameworks. Safe to call again."""
    with _State.lock:
        if _State.begun:
            return
        _State.begun = True
    if not _claim("readahead"):
        os.environ.pop(readahead.ENV, None)  # another process of this service reads ahead
    quickstart.begin()
    if os.environ.get(ENV_REPORT):
        from prebake.adopt import report

        _reporters.append(report.begin(_claim("report")))
    quickstart.collector.pause(_PAUSED)
    timer = threading.Timer(PAUSE, settle)
    timer.daemon, timer.name = True, "prebake-settle"
    timer.start()


def settle() -> None:
    """Let the garbage collector run again: the frameworks are imported. Safe to call again."""
    quickstart.collector.resume(_PAUSED)


def loaded() -> None:
    """A load has ended."""
    settle()
    for reporter in _reporters:
        if reporter is not None:
            reporter.loaded()


_reporters: list[Reporter | None] = []


_claims: list[object] = []
"""Sockets that hold this process's claims until it ends."""


def _claim(task: str) -> bool:
    """Whether this process may do what one process of the service should do.

    The claim is an abstract Unix socket (Linux), which nothing has to remove. A process outside `prebake run`, and one
    that cannot make such a socket, does the task itself.
    """
    service = os.environ.get(ENV_SERVICE)
    if not service:
        return True
    import socket

    try:
        claimed = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    except (OSError, AttributeError):
        return True
    try:
        claimed.bind(f"\0prebake-{task}-{service}")
    except OSError:
        claimed.close()
        return False
    _claims.append(claimed)
    return True


def _after_fork_in_child() -> None:
    """A child has neither the threads nor the timer of its parent: it reports for itself, under its own process id."""
    _State.lock = threading.Lock()
    _reporters.clear()
    if _State.begun and os.environ.get(ENV_REPORT):
        from prebake.adopt import report

        _reporters.append(report.begin(False))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
