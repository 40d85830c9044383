"""The locks around frameworks and imports, and what a fork does with them."""

from __future__ import annotations

import os
import threading

FRAMEWORK_LOCK = threading.RLock()
"""Held while a framework is imported or builds something: they patch global state meanwhile (torch's default
dtype, `torch.nn.init`), which another thread must neither see nor capture. Reading files goes on beside it."""


IMPORTS = threading.RLock()
"""Held while something is imported, and while a framework's own loader runs, which changes torch's default dtype. A
fork waits for it: a child cannot finish an import that another thread began, nor undo what another thread changed."""


def _free_the_lock_in_a_forked_child() -> None:
    # another thread's hold on it would never end: the child has only the thread that forked
    if not FRAMEWORK_LOCK._is_owned():  # type: ignore[attr-defined]
        FRAMEWORK_LOCK._at_fork_reinit()  # type: ignore[attr-defined]
    IMPORTS.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=IMPORTS.acquire, after_in_parent=IMPORTS.release, after_in_child=_free_the_lock_in_a_forked_child
    )
