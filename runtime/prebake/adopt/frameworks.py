"""What happens at the first import of a framework: the quick start, and the imports on the timeline.

The garbage collector is paused from the first framework's import until the first load of a model ends, or for `PAUSE`
seconds. A forked child starts with the collector as it was before.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from prebake.adopt import ENV_SERVICE
from prebake.families import compat
from prebake.startup import quickstart, readahead
from prebake.telemetry import timeline

PAUSE = 10.0
"""Seconds. Imports of frameworks take less; a process that only imports them must not grow for ever."""

_PAUSED = "frameworks"


class _State:
    lock = threading.Lock()
    begun = False


def importing(name: str) -> Iterator[None]:
    """The span of a framework's import, for `imports.around_import`. The first call prepares the process."""
    begin()
    return _importing(name)  # type: ignore[return-value]


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
    quickstart.collector.pause(_PAUSED)
    timer = threading.Timer(PAUSE, settle)
    timer.daemon, timer.name = True, "prebake-settle"
    timer.start()


def settle() -> None:
    """Let the garbage collector run again: the frameworks are imported. Safe to call again."""
    quickstart.collector.resume(_PAUSED)


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
