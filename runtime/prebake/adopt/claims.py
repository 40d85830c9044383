"""What one process of a service does for all: the first that claims the task."""

from __future__ import annotations

import os

from prebake import snapshot
from prebake.adopt import ENV_SERVICE

_claims: list[object] = []
"""Sockets that hold this process's claims until it ends."""


def claim(task: str) -> bool:
    """Whether this process may do what one process of the service should do.

    The claim is an abstract Unix socket (Linux), which nothing has to remove. A process outside `prebake run`, and one
    that cannot make such a socket, does the task itself.
    """
    service = os.environ.get(ENV_SERVICE)
    if not service or snapshot.wanted():  # a socket could not be dumped
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
