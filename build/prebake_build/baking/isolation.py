"""The parent's side of the worker's isolation: the worker's environment, and the protection of this process.

The worker's environment is filtered by an allow-list, and its HOME is an empty folder. While the worker runs, this
process is not dumpable, so no process without CAP_SYS_PTRACE can read its memory or environment. The kernel shows a
process's initial environment in /proc even after `os.environ` changes, so secret values are overwritten there.
`prebake_build.baking.sandbox` is the worker's side.
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
"""Comma-separated names of additional variables that the worker gets."""

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
"""Prefixes of allowed variables: language, threads, allocators, torch, and Prebake's own."""

_RUNTIME_FOLDERS = ("/run", "/var/run")
"""Folders with sockets of daemons, and with secrets that Docker and Kubernetes mount."""
_PR_GET_DUMPABLE, _PR_SET_DUMPABLE = 3, 4

_log = logging.getLogger(__name__)
_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Isolated:
    """Environment and argument of the worker."""

    environment: Mapping[str, str]
    plan: str
    """The worker's argument: a `Plan` as JSON."""


@contextmanager
def isolated(
    checkpoint: Path, folder: Path, hidden: Sequence[Path] = (), *, confined: bool = False
) -> Iterator[Isolated]:
    """Isolation for the lifetime of a worker that reads `checkpoint` and writes `folder`. Raises ConfigError.

    `hidden` are folders that it must not see. With `confined`, it ends before it reads anything if the system cannot
    keep it from writing outside of its folders.
    """
    allocated = memory.limit(checkpoint)
    with tempfile.TemporaryDirectory(prefix="prebake-worker-") as scratch, _unreadable():
        for name in ("home", "empty", "temporary"):
            (Path(scratch) / name).mkdir()
        (Path(scratch) / "file").touch()
        plan = Plan(
            homes=_homes(),
            covered=(*_RUNTIME_FOLDERS, *_credential_files(os.environ)),
            hidden=tuple(str(path.absolute()) for path in hidden),
            kept=(str(checkpoint.absolute()), str(folder.absolute()), scratch, tempfile.gettempdir(), os.curdir),
            empty_folder=f"{scratch}/empty",
            empty_file=f"{scratch}/file",
            writable=(str(folder.absolute()), scratch),
            confined=confined,
            memory=allocated,
        )
        own = {"TMPDIR": f"{scratch}/temporary"}  # the system's folder for temporary files has those of others, too
        yield Isolated(environment(os.environ, f"{scratch}/home") | own, json.dumps(dataclasses.asdict(plan)))


def environment(current: Mapping[str, str], home: str) -> dict[str, str]:
    """The allowed variables of `current`, with `home` as HOME."""
    passed = {name.strip() for name in current.get(ENV_PASSED, "").split(",")}
    found = {name: value for name, value in current.items() if _is_allowed(name) or name in passed}
    if site.ENABLE_USER_SITE and (base := site.getuserbase()):
        found.setdefault("PYTHONUSERBASE", base)  # packages of the user stay where they are
    return found | {"HOME": home}


def _is_allowed(name: str) -> bool:
    return name in NAMES or name.startswith(FAMILIES)


def _homes() -> tuple[str, ...]:
    """The user's home folders: from HOME and from the user database."""
    found = [os.environ.get("HOME", "")]
    try:
        found.append(pwd.getpwuid(os.geteuid()).pw_dir)
    except KeyError:
        _log.debug("user id %d is not in the user database", os.geteuid())
    return tuple(dict.fromkeys(home for home in found if home.strip("/")))


def _credential_files(current: Mapping[str, str]) -> Sequence[str]:
    """Files and sockets named in variables that the worker does not get: tokens, keys, agents."""
    named = [value for name, value in current.items() if not _is_allowed(name) and value.startswith("/")]
    if folder := current.get("HF_HOME"):
        named += [f"{folder}/token", f"{folder}/stored_tokens"]
    return sorted(value for value in named if _is_data(Path(value)))


def _is_data(path: Path) -> bool:
    try:
        # An executable file is a tool, such as the shell, or the Python in `_`.
        return path.is_socket() or (path.is_file() and not path.stat().st_mode & 0o111)
    except (OSError, ValueError):
        return False


@contextmanager
def _unreadable() -> Iterator[None]:
    """During the block, unprivileged processes can't read this process's memory, environment or open files."""
    _overwrite_initial_environment()
    before = _libc.prctl(_PR_GET_DUMPABLE, 0, 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    try:
        yield
    finally:
        if before == 1:  # other values are set by the system and can't be restored
            _libc.prctl(_PR_SET_DUMPABLE, 1, 0, 0, 0)


def _overwrite_initial_environment() -> None:
    """Overwrite the variables that the worker does not get in /proc/PID/environ.

    The kernel shows the memory where it put the environment at the start of the process (proc(5): env_start, env_end).
    The variables are moved to other memory first, so `os.environ` and getenv() keep them.
    """
    try:
        shown = Path("/proc/self/environ").read_bytes()
        # The second field, the name in parentheses, may contain spaces; the split starts at the third field.
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
                os.unsetenv(name)  # else the C library may keep an equal value in its old place
                os.putenv(name, now)
            ctypes.memset(position + len(name) + 1, 0, len(value))
        position += len(entry) + 1
