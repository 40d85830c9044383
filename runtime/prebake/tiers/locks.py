"""The locks around frameworks and imports, and what a fork does with them."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

FRAMEWORK_LOCK = threading.RLock()
"""Held while a framework is imported or builds something: they patch global state meanwhile (torch's default
dtype, `torch.nn.init`), which another thread must neither see nor capture. Reading files goes on beside it."""


IMPORTS = threading.RLock()
"""Held while something is imported, and while a framework's own loader runs, which changes torch's default dtype. A
fork waits for it: a child cannot finish an import that another thread began, nor undo what another thread changed."""

_COMPUTING: list[int] = []
"""Threads inside `computing`."""
_COMPUTED = threading.Condition()
"""Guards `_COMPUTING`; a fork holds it."""


@contextmanager
def computing() -> Iterator[None]:
    """Around a model's first call, which may be in the middle of an import or hold a lock of a framework: a fork by
    another thread waits for its end. Other models load meanwhile. What OpenMP and MKL keep of the call lasts beyond it,
    so that a child that computes itself may hang all the same."""
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
    # without waiting for the one while holding the other: who computes may import, who imports may begin to compute
    while set(_COMPUTING) - {threading.get_ident()} or not IMPORTS.acquire(timeout=0.01):
        _COMPUTED.wait(0.01)


def _after_fork() -> None:
    IMPORTS.release()
    _COMPUTED.release()


def _after_fork_in_child() -> None:
    # another thread's hold on it would never end: the child has only the thread that forked
    if not FRAMEWORK_LOCK._is_owned():  # type: ignore[attr-defined]
        FRAMEWORK_LOCK._at_fork_reinit()  # type: ignore[attr-defined]
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
