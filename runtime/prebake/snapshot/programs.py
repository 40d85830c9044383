"""The two native programs: where they are, and how Python calls the library.

`prebake-restore` starts containers; `libprebake-pause.so` is loaded by the process that is dumped. Both are built from
`native/` by `prebake snapshot --build-programs` (gcc or clang), in a builder stage.
"""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

from prebake.errors import ConfigError, SnapshotError
from prebake.snapshot.table import CPU_WORDS

ENV = "PREBAKE_SNAPSHOT_PROGRAMS"
"""Folder of the two programs."""
LIBRARY = "libprebake-pause.so"
RESTORER = "prebake-restore"
SOURCES = Path(__file__).parent / "native"


def folder() -> Path:
    """Where the programs are: PREBAKE_SNAPSHOT_PROGRAMS, or `libexec/prebake` of this Python's environment."""
    return Path(os.environ.get(ENV) or Path(sys.prefix) / "libexec" / "prebake")


def build(output: Path) -> None:
    """Compile the programs into a folder. Raises ConfigError without a compiler, or where snapshots do not exist."""
    if why := unsupported():
        raise ConfigError(f"snapshots: {why}")
    compiler = os.environ.get("CC") or next(filter(shutil.which, ("gcc", "cc", "clang")), None)
    if compiler is None:
        raise ConfigError("snapshots: no C compiler: install gcc in the stage that builds the programs, or set CC")
    output.mkdir(parents=True, exist_ok=True)
    for command in commands(compiler, output):
        done = subprocess.run(command, cwd=SOURCES, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ConfigError(f"snapshots: {compiler} failed: {done.stderr.strip()}")


def commands(compiler: str, output: Path) -> list[list[str]]:
    """What compiles the two programs. Neither is linked with a C library."""
    common = [
        compiler, "-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-ffreestanding", "-fno-stack-protector",
        "-fcf-protection=none", "-mgeneral-regs-only", "-fno-asynchronous-unwind-tables", "-nostdlib", "-s",
        "-Wl,--build-id=none", "-Wl,-z,noexecstack",
    ]  # fmt: skip
    # 0x100000 is RESTORER of table.h, where no dumped process has memory
    low = ["-static", "-fno-pie", "-no-pie", "-Wl,-Ttext-segment=0x100000", "-Wl,-z,noseparate-code"]
    return [
        [*common, *low, "-o", str(output.absolute() / RESTORER), "restore.c", "start.c", "table.c", "ahead.c"],
        [
            *common,
            "-shared",
            "-fPIC",
            "-fvisibility=hidden",
            "-o",
            str(output.absolute() / LIBRARY),
            "pause.c",
            "table.c",
        ],
    ]


def unsupported() -> str | None:
    """Why this machine has no snapshots, or None."""
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return f"they exist for Linux on x86-64, and this is {sys.platform} on {platform.machine()}"
    if platform.libc_ver()[0] != "glibc":
        return "they need glibc"
    return None


class Library:
    """`libprebake-pause.so`, loaded."""

    def __init__(self, path: Path | None = None) -> None:
        """Raises SnapshotError if the library can't be loaded."""
        if why := unsupported():
            raise SnapshotError(why)
        path = path or folder() / LIBRARY
        try:
            self._library = ctypes.PyDLL(str(path.resolve()))  # the calling thread keeps the GIL
        except OSError as error:
            raise SnapshotError(f"{path}: cannot be loaded ({error}); see prebake snapshot --build-programs") from error
        self._library.prebake_pause.argtypes = [ctypes.c_uint64, ctypes.c_uint32]
        self._library.prebake_pause.restype = ctypes.c_int64
        self._library.prebake_check.argtypes = [ctypes.c_char_p, ctypes.c_uint64]
        self._library.prebake_check.restype = ctypes.c_char_p
        self._library.prebake_frame_address.restype = ctypes.c_uint64

    def pause(self) -> int:
        """Stop this process (SIGSTOP). Returns the address of the handover in the restored process, 0 if it was only
        continued.

        Raises SnapshotError if the kernel refuses to tell what the restore needs.
        """
        address, size = _rseq()
        result = int(self._library.prebake_pause(address, size))
        if -4096 < result < 0:
            raise SnapshotError(f"the kernel does not tell this thread's state: {os.strerror(-result)}")
        return result

    @property
    def resume(self) -> int:
        """The address where the restored process goes on."""
        return ctypes.cast(self._library.prebake_resume, ctypes.c_void_p).value or 0

    @property
    def frame(self) -> int:
        """The address of the state that `pause` writes."""
        return int(self._library.prebake_frame_address())

    def cpu(self) -> tuple[int, ...]:
        """The processor's features."""
        words = (ctypes.c_uint32 * CPU_WORDS)()
        self._library.prebake_cpu(words)
        return tuple(words)

    def check(self, table: bytes) -> str | None:
        """What the restorer would say against this table, or None."""
        wrong = self._library.prebake_check(table, len(table))
        return wrong.decode() if wrong else None


def _rseq() -> tuple[int, int]:
    """Address and size of the area that glibc registered for restartable sequences; (0, 0) if it did not."""
    libc = ctypes.CDLL(None)
    try:
        offset, size = (ctypes.c_ssize_t.in_dll(libc, "__rseq_offset"), ctypes.c_uint.in_dll(libc, "__rseq_size"))
    except ValueError:  # glibc < 2.35
        return 0, 0
    if not size.value:
        return 0, 0
    libc.pthread_self.restype = ctypes.c_uint64  # the thread pointer of x86-64
    return libc.pthread_self() + offset.value, max(32, size.value)
