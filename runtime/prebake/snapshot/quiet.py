"""Before the dump: the process lets go of everything that is not memory.

Threads that libraries can start again (OpenMP's, OpenBLAS's) are ended. For all others, and for sockets, pipes, open
files and children, the dump is refused with their names.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
import threading
import time
from pathlib import Path

from prebake.errors import SnapshotError

PATIENCE = 5.0
"""Seconds for threads to end."""
PAUSE_HARD = 2
"""`omp_pause_hard` of OpenMP 5.0: the pool's threads end, later parallel regions start new ones."""

_OPENMP = re.compile(r"/lib(gomp|omp|iomp5)[^/]*\.so[^/]*$")


def let_go() -> None:
    """Free what can be freed, end what can be ended. Raises SnapshotError for the rest."""
    sys.stdout.flush()
    sys.stderr.flush()
    for library in mapped_libraries(_OPENMP):
        if pause := getattr(library, "omp_pause_resource_all", None):
            pause(PAUSE_HARD)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(1)  # ends its threads; `renew` sets the number again
    # Libraries that can cope with a fork, such as OpenBLAS, end their threads before one (man 3 pthread_atfork).
    if (child := os.fork()) == 0:
        os._exit(0)
    os.waitpid(child, 0)
    gc.collect()
    gc.freeze()
    if trim := getattr(ctypes.CDLL(None), "malloc_trim", None):
        trim(ctypes.c_size_t(0))
    _no_threads()
    _no_children()
    _no_descriptors()


def mapped_libraries(pattern: re.Pattern[str]) -> list[ctypes.CDLL]:
    """The loaded shared libraries whose path matches."""
    lines = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    paths = {line.split(maxsplit=5)[-1] for line in lines if pattern.search(line)}
    return [ctypes.CDLL(path, mode=os.RTLD_NOLOAD | os.RTLD_LAZY) for path in sorted(paths)]


def _no_threads() -> None:
    deadline = time.monotonic() + PATIENCE
    while len(os.listdir("/proc/self/task")) > 1:  # noqa: PTH208
        if time.monotonic() > deadline:
            raise SnapshotError(f"other threads are running: {', '.join(_threads())}; end them in a function that "
                                  "prebake.snapshot.before_snapshot registers")  # fmt: skip
        time.sleep(0.01)


def _threads() -> list[str]:
    python = {thread.native_id: thread.name for thread in threading.enumerate()}
    names = []
    for task in sorted(Path("/proc/self/task").iterdir(), key=lambda task: int(task.name)):
        number = int(task.name)
        if number != os.getpid():
            names.append(python.get(number) or (task / "comm").read_text(encoding="utf-8").strip())
    return names


def _no_children() -> None:
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return
    raise SnapshotError("a child process is running; wait for it in a function that prebake.snapshot.before_snapshot "
                          "registers")  # fmt: skip


def _no_descriptors() -> None:
    found = []
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            target = Path(f"/proc/self/fd/{number}").readlink()
        except OSError:  # the descriptor of the listing itself
            continue
        if int(number) > 2:
            found.append(f"{number} ({target})")
    if found:
        raise SnapshotError(f"files, pipes or sockets are open: {', '.join(found)}; close them in a function that "
                              "prebake.snapshot.before_snapshot registers")  # fmt: skip
