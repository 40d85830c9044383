"""The locks around frameworks and imports, and their handling in a fork."""

from __future__ import annotations

import os
import threading

FRAMEWORK_LOCK = threading.RLock()
"""Held while a framework is imported or builds a module. Frameworks patch global state meanwhile (torch's default
dtype, `torch.nn.init`), which other threads must neither see nor capture. File reads do not need this lock."""


IMPORTS = threading.RLock()
"""Held during imports, and while a framework's own loader runs, because that changes torch's default dtype. A fork
waits for it: a child can neither finish another thread's import nor undo another thread's change."""


def _free_the_lock_in_a_forked_child() -> None:
    # if another thread held the lock, it would never release it: the child has only the forking thread
    if not FRAMEWORK_LOCK._is_owned():  # type: ignore[attr-defined]
        FRAMEWORK_LOCK._at_fork_reinit()  # type: ignore[attr-defined]
    IMPORTS.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=IMPORTS.acquire, after_in_parent=IMPORTS.release, after_in_child=_free_the_lock_in_a_forked_child
    )
