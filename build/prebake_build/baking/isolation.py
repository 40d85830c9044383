"""The parent's side of the worker's isolation: what the worker is given, and what it cannot take from here.

The environment is an allow-list, HOME an empty folder. While the worker lives, this process is not dumpable, so no
process without CAP_SYS_PTRACE reads its memory or environment; and the values that the kernel shows as its initial
environment, whatever becomes of `os.environ`, are overwritten. `prebake_build.baking.sandbox` is the worker's side.
"""

from __future__ import annotations

import ctypes
import dataclasses
import json
import logging
import os
import pwd
import site
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prebake_build.baking import memory
from prebake_build.baking.sandbox import Plan

ENV_PASSED = "PREBAKE_WORKER_ENV"
"""Names of further variables that the worker gets, with commas between them."""

NAMES = frozenset((
    "PATH", "LANG", "LANGUAGE", "TZ", "TERM", "COLUMNS", "NO_COLOR", "TMPDIR", "USER", "LOGNAME",
    "LD_LIBRARY_PATH", "LD_PRELOAD", "GLIBC_TUNABLES", "VIRTUAL_ENV", "CONDA_PREFIX", "CUDA_VISIBLE_DEVICES",
    "PYTHONPATH", "PYTHONHOME", "PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONUSERBASE", "PYTHONPLATLIBDIR",
    "PYTHONUTF8", "PYTHONIOENCODING", "PYTHONCOERCECLOCALE", "PYTHONUNBUFFERED", "PYTHONFAULTHANDLER",
    "PYTHONWARNINGS", "PYTHONDEVMODE", "PYTHONOPTIMIZE", "PYTHONMALLOC", "PYTHONDONTWRITEBYTECODE",
    "PYTHONPYCACHEPREFIX",
))  # fmt: skip
FAMILIES = (
    "LC_", "OMP_", "KMP_", "GOMP_", "MKL_", "OPENBLAS_", "VECLIB_", "NUMEXPR_", "DNNL_", "ONEDNN_", "MALLOC_", "ATEN_",
    "TORCH_", "PYTORCH_", "PREBAKE_",
)  # fmt: skip
"""How the names of allowed variables may begin: language, threads, allocators, torch, and our own."""

_RUNTIME_FOLDERS = ("/run", "/var/run")
"""Sockets of daemons, and where Docker and Kubernetes mount secrets."""
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Isolated:
    """What to start the worker with."""

    environment: Mapping[str, str]
    plan: str
    """The worker's argument: a `Plan` as JSON."""


@contextmanager
def isolated(checkpoint: Path, folder: Path) -> Iterator[Isolated]:
    """For the time that a worker lives, which reads `checkpoint` and writes `folder`. Raises ConfigError."""
    allocated = memory.limit(checkpoint)
    with tempfile.TemporaryDirectory(prefix="prebake-worker-") as scratch, _unreadable():
        for name in ("home", "empty"):
            (Path(scratch) / name).mkdir()
        (Path(scratch) / "file").touch()
        plan = Plan(
            homes=_homes(),
            covered=(*_RUNTIME_FOLDERS, *_credential_files(os.environ)),
            kept=(str(checkpoint.absolute()), str(folder.absolute()), scratch, tempfile.gettempdir(), os.curdir),
            empty_folder=f"{scratch}/empty",
            empty_file=f"{scratch}/file",
            writable=str(folder.absolute()),
            memory=allocated,
        )
        yield Isolated(environment(os.environ, f"{scratch}/home"), json.dumps(dataclasses.asdict(plan)))


def environment(current: Mapping[str, str], home: str) -> dict[str, str]:
    """Of `current` what the worker may know, with `home` for its HOME."""
    passed = {name.strip() for name in current.get(ENV_PASSED, "").split(",")}
    found = {name: value for name, value in current.items() if _is_allowed(name) or name in passed}
    if site.ENABLE_USER_SITE and (base := site.getuserbase()):
        found.setdefault("PYTHONUSERBASE", base)  # packages of the user stay where they are
    return found | {"HOME": home}


def _is_allowed(name: str) -> bool:
    return name in NAMES or name.startswith(FAMILIES)


def _homes() -> tuple[str, ...]:
    """The user's home folders: that of the environment, and that of the user database."""
    found = [os.environ.get("HOME", "")]
    try:
        found.append(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        _log.debug("user id %d is not in the user database", os.geteuid())
    return tuple(dict.fromkeys(home for home in found if home.strip("/")))


def _credential_files(current: Mapping[str, str]) -> Sequence[str]:
    """Files and sockets that variables name which the worker does not get: tokens, keys, agents."""
    named = [value for name, value in current.items() if not _is_allowed(name) and value.startswith("/")]
    if folder := current.get("HF_HOME"):
        named += [f"{folder}/token", f"{folder}/stored_tokens"]
    return sorted(value for value in named if _is_data(Path(value)))


def _is_data(path: Path) -> bool:
    try:
        # An executable is a tool, such as the shell or this Python, which `_` names.
        return path.is_socket() or (path.is_file() and not path.stat().st_mode & 0o111)
    except (OSError, ValueError):
        return False


@contextmanager
def _unreadable() -> Iterator[None]:
    """No other process without privileges reads this one's memory, environment or open files meanwhile."""
    _overwrite_initial_environment()
    before = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        if before == 1:  # another value is the system's own, and cannot be set
            _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _overwrite_initial_environment() -> None:
    """Overwrite what /proc/PID/environ shows of variables that the worker does not get.

    The kernel shows the memory where it put the environment when the process began (proc(5): env_start, env_end).
    Variables move elsewhere first: `os.environ` and getenv() keep them.
    """
    try:
        shown = Path("/proc/self/environ").read_bytes()
        # The second field, the name in parentheses, may hold spaces; the third is the first after it.
        fields = Path("/proc/self/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        start, end = int(fields[50 - 3]), int(fields[51 - 3])
    except (OSError, ValueError, IndexError) as error:
        _log.debug("the initial environment cannot be found: %s", error)
        return
    if not start or end - start != len(shown) or ctypes.string_at(start, len(shown)) != shown:
        _log.debug("the initial environment is not where /proc/self/stat says")
        return
    position = start
    for entry in shown.split(b"\0"):
        name, equals, value = entry.partition(b"=")
        if equals and value and not _is_allowed(os.fsdecode(name)):
            if (now := os.environb.get(name)) is not None:
                os.unsetenv(name)  # a C library may leave an equal value where it is
                os.putenv(name, now)
            ctypes.memset(position + len(name) + 1, 0, len(value))
        position += len(entry) + 1
