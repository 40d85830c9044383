"""The locks around frameworks and imports, and their handling in a fork."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FRAMEWORK_LOCK = threading.RLock()
"""Held while a framework is imported or builds a module. Frameworks patch global state meanwhile (torch's default
dtype, `torch.nn.init`), which other threads must neither see nor capture. File reads do not need this lock."""


IMPORTS = threading.RLock()
"""Held during imports, and while a framework's own loader runs, because that changes torch's default dtype. A fork
waits for it: a child can neither finish another thread's import nor undo another thread's change."""

_COMPUTING: list[int] = []
"""Threads inside `computing`."""
_COMPUTED = threading.Condition()
"""Guards `_COMPUTING`; a fork holds it."""


@contextmanager
def computing() -> Iterator[None]:
    """Held around a model's first call, which may import modules and take a framework's locks at any time. A fork by
    another thread waits until it ends; other models can load meanwhile."""
    thread = threading.get_ident()
    with _COMPUTED:
        _COMPUTING.append(thread)
    try:
        yield
    finally:
        with _COMPUTED:
            _COMPUTING.remove(thread)
            _COMPUTED.notify_all()


def _before_fork() -> None:
    _COMPUTED.acquire()
    # never wait for one lock while holding the other: a computing thread may import, an importing one may compute
    while set(_COMPUTING) - {threading.get_ident()} or not IMPORTS.acquire(timeout=0.01):
        _COMPUTED.wait(0.01)


def _after_fork() -> None:
    IMPORTS.release()
    _COMPUTED.release()


def _after_fork_in_child() -> None:
    # if another thread held the lock, it would never release it: the child has only the forking thread
    if not FRAMEWORK_LOCK._is_owned():  # type: ignore[attr-defined]
        FRAMEWORK_LOCK._at_fork_reinit()  # type: ignore[attr-defined]
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
