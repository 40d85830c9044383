"""What a restored process learns anew: everything that it found out at the dump and that is another in this container.

Each step is a function; `renew` calls them in order. What can't be mended is listed in docs/snapshot.md: the hash seed,
the stack canary, and the address layout are the same in all containers of a snapshot.
"""

from __future__ import annotations

import ctypes
import io
import logging
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from prebake.snapshot.processors import processors
from prebake.snapshot.quiet import mapped_libraries
from prebake.telemetry import timeline

_OPENBLAS = re.compile(r"/lib(scipy_)?openblas[^/]*\.so[^/]*$")
_SET_THREADS = ("scipy_openblas_set_num_threads64_", "scipy_openblas_set_num_threads", "openblas_set_num_threads64_",
                "openblas_set_num_threads")  # fmt: skip
_END_THREADS = "blas_thread_shutdown_"
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -3, -4, -8


_libraries: list[ctypes.CDLL] = []


def prepare() -> None:
    """Before the dump: find what is needed afterwards. The loader knows libraries by the device and inode of their
    file, which are others in another container, so none can be found there."""
    _libraries[:] = mapped_libraries(_OPENBLAS)


def renew(arguments: Sequence[str], environment: Sequence[bytes], prefix: int) -> None:
    """Renew the state of this process. `prefix` is the number of arguments before those of the program."""
    _environment(environment)
    sys.argv[1:] = arguments[prefix:]
    sys.orig_argv[:] = [*sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1], *sys.argv[1:]]
    _streams()
    _allocator()
    _random()
    _identity()
    _processors()


def _environment(pairs: Sequence[bytes]) -> None:
    os.environ.clear()
    for pair in pairs:
        name, equals, value = pair.partition(b"=")
        if name and equals:
            with suppress(ValueError):  # a name that the kernel allows and setenv does not
                os.environb[name] = value
    time.tzset()


def _streams() -> None:
    """New stdin, stdout and stderr on the container's descriptors, also for handlers of `logging`."""
    old = {id(stream): name for name in ("stdin", "stdout", "stderr") for stream in
           (getattr(sys, name), getattr(sys, f"__{name}__")) if stream is not None}  # fmt: skip
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper):
            new = _stream(number, stream)
            setattr(sys, name, new)
            setattr(sys, f"__{name}__", new)
    for handler in _handlers():
        of_stream = old.get(id(vars(handler).get("stream")))
        if isinstance(handler, logging.StreamHandler) and of_stream:
            handler.stream = getattr(sys, of_stream)


def _stream(number: int, like: io.TextIOWrapper) -> TextIO:
    unbuffered = os.environ.get("PYTHONUNBUFFERED") not in (None, "") or number == 2
    raw = io.FileIO(number, "rb" if number == 0 else "wb", closefd=False)
    binary = io.BufferedReader(raw) if number == 0 else io.BufferedWriter(raw)
    return io.TextIOWrapper(binary, like.encoding, like.errors, line_buffering=raw.isatty() or number == 2,
                            write_through=unbuffered and number > 0)  # fmt: skip


def _handlers() -> list[logging.Handler]:
    return [handler for reference in logging._handlerList if (handler := reference()) is not None]  # type: ignore[attr-defined]


def _allocator() -> None:
    """Undo what `environment.DURING_DUMP` sets: large blocks get mappings of their own again. The thresholds are those
    that glibc itself ends up with after it freed a large block (man 3 mallopt)."""
    if mallopt := getattr(ctypes.CDLL(None), "mallopt", None):
        mallopt(M_MMAP_MAX, 65536)
        mallopt(M_MMAP_THRESHOLD, 32 << 20)
        mallopt(M_TRIM_THRESHOLD, 64 << 20)
        mallopt(M_ARENA_MAX, 0)


def _random() -> None:
    """New seeds: otherwise all containers of a snapshot would draw the same numbers."""
    seen: dict[str, Any] = sys.modules  # a copy would write to the memory of each module: 8 MB
    if "random" in seen:
        seen["random"].seed()
    if "numpy" in seen and "numpy.random" in seen:
        seen["numpy"].random.seed()
    if "torch" in seen:
        # `torch.seed` would also queue seeds for accelerators, each with a traceback that reads source files
        seen["torch"].default_generator.seed()
    if "ssl" in seen:
        seen["ssl"].RAND_add(os.urandom(64), 64.0)
    if "_hashlib" in seen and "ssl" not in seen:
        with suppress(ImportError):
            import ssl

            ssl.RAND_add(os.urandom(64), 64.0)
    if "uuid" in seen:
        seen["uuid"]._node = seen["uuid"]._last_timestamp = None
        seen["uuid"]._generate_time_safe = None  # libuuid keeps a clock sequence that can't be reset
    if "tempfile" in seen:
        seen["tempfile"]._name_sequence = None
        if seen["tempfile"].tempdir in seen["tempfile"]._candidate_tempdir_list():  # found, and not set by the program
            seen["tempfile"].tempdir = None


def _identity() -> None:
    """Process and host: numbers and names that libraries keep."""
    import threading

    main = threading.main_thread()
    if hasattr(main, "_set_native_id"):
        main._set_native_id()
    seen: dict[str, Any] = sys.modules
    if "platform" in seen:
        seen["platform"]._uname_cache = None
    timeline.restart_in_child()


def _processors() -> None:
    """As many threads as a process that starts here would use: OMP_NUM_THREADS, else the processors it may use."""
    declared = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    count = int(declared) if declared.isdigit() and int(declared) else processors()
    if "torch" in sys.modules and sys.modules["torch"].get_num_threads() != count:
        sys.modules["torch"].set_num_threads(count)
    if "cv2" in sys.modules:
        sys.modules["cv2"].setNumThreads(count)
    for library in _libraries:
        for name in _SET_THREADS:
            setter, getter = getattr(library, name, None), getattr(library, name.replace("_set_", "_get_"), None)
            if setter and getter and getter() != count:
                setter(count)  # starts as many threads as at the dump first, which would be idle
                if end := getattr(library, _END_THREADS, None):
                    end()  # the next large product starts as many as it needs
