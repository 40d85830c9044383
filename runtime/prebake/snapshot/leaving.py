"""The end of a restored process: without the interpreter's own, which writes to nearly all memory.

Taking apart all objects makes private copies of the pages of memory.img: 200 MB and a tenth of a second just before the
process ends, and where a memory limit is near, the kernel would kill it instead (exit code 137).
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
from contextlib import suppress
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End the process with this exit code, after all that may want to know of it: other threads, `atexit`, and what
    is left in the streams."""
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads that are no daemons
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(AttributeError, OSError, ValueError):
            stream.flush()
    os._exit(code)
