"""Which environment variables a dumped process sees, and which a restored one must have.

Three kinds: variables that the loaded state depends on (`BOUND`) must have the same value at the restore, or the
snapshot is refused; a few that any program needs (`KEPT`) are passed to the dump and renewed; all others are withheld
from the dump, so that no secret of the build can be in it.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from prebake.errors import SnapshotError

BOUND = (
    "-PREBAKE_SNAPSHOT*", "-PREBAKE_BASELINE", "-PREBAKE_BUDGET", "-PREBAKE_REPORT", "PREBAKE",
    "PREBAKE_*",
    "ATEN_*", "DNNL_*", "ONEDNN_*", "MKL_*", "OMP_WAIT_POLICY", "OMP_PROC_BIND", "OMP_PLACES", "OMP_DYNAMIC", "GOMP_*",
    "OPENBLAS_*", "TORCH_*", "PYTORCH_*", "HF_HUB_OFFLINE", "HF_HOME", "HF_HUB_CACHE", "HF_ENDPOINT",
    "TRANSFORMERS_*", "TOKENIZERS_PARALLELISM", "PYTHON*", "LD_*", "GLIBC_TUNABLES", "MALLOC_*", "LANG", "LANGUAGE",
    "LC_*", "CUDA_VISIBLE_DEVICES", "UVICORN_*", "WEB_CONCURRENCY", "FORWARDED_ALLOW_IPS",
)  # fmt: skip
"""Names and prefixes, or exemptions with a `-`; the first that matches decides."""
KEPT = ("PATH", "HOME", "TZ", "OMP_NUM_THREADS", "TMPDIR", "PREBAKE_SNAPSHOT_PROGRAMS", "PREBAKE_SNAPSHOT_WARM")
DURING_DUMP = {
    "GLIBC_TUNABLES": "glibc.malloc.arena_max=1:glibc.malloc.mmap_max=0",
    "LD_BIND_NOW": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Set for the dumped process alone. glibc keeps all memory in one heap, which can be mapped from a file (see `memory`).
It binds functions when it loads a library, not at their first call: then it would save the vector registers in an area
whose size it took from the processor of the dump, and those of a newer one overflow that. tokenizers starts no threads,
which could not be ended."""
SECRETS = ("TOKEN", "SECRET", "PASSW", "CREDENTIAL", "API_KEY", "ACCESS_KEY", "PRIVATE")


def at_start() -> dict[str, str]:
    """This process's environment as it was executed: Python adds LC_CTYPE to it where no locale is set (PEP 538).

    Raises OSError without `/proc`.
    """
    pairs = Path("/proc/self/environ").read_bytes().split(b"\0")
    return {
        os.fsdecode(name): os.fsdecode(value) for name, _, value in (pair.partition(b"=") for pair in pairs) if name
    }


def with_own(environment: Mapping[str, str]) -> dict[str, str]:
    """The environment with `DURING_DUMP`; settings of glibc that it has already stay."""
    tunables = ":".join(filter(None, (environment.get("GLIBC_TUNABLES"), DURING_DUMP["GLIBC_TUNABLES"])))
    return {**environment, **DURING_DUMP, "GLIBC_TUNABLES": tunables}


def matches(name: str, patterns: Iterable[str]) -> bool:
    """Whether the first matching pattern is no exemption. `native/start.c` does the same."""
    for pattern in patterns:
        bare = pattern.removeprefix("-")
        if name == bare or (bare.endswith("*") and name.startswith(bare[:-1])):
            return not pattern.startswith("-")
    return False


def is_secret(name: str) -> bool:
    return any(word in name.upper() for word in SECRETS) and name != "TOKENIZERS_PARALLELISM"


def of_dump(environment: Mapping[str, str], more: Iterable[str] = ()) -> dict[str, str]:
    """The environment for the process that will be dumped, without `DURING_DUMP`. `more` are further bound names."""
    patterns = [*more, *BOUND]
    return {
        name: value
        for name, value in environment.items()
        if name in KEPT or (matches(name, patterns) and (name in more or not is_secret(name)))
    }


def bound(environment: Mapping[str, str], more: Iterable[str] = ()) -> list[str]:
    """`NAME=VALUE` of the variables that a restore must find."""
    patterns = [*more, *BOUND]
    return sorted(f"{name}={value}" for name, value in environment.items() if matches(name, patterns))


def only_when_unset(asked: Mapping[str, str], withheld: Iterable[str]) -> list[str]:
    """The names of `asked` that a container must not set, since the dump did not have them.

    Raises SnapshotError for a name that is set here and was withheld: no container would ever be restored.
    """
    names = sorted(name for name in asked if name not in KEPT and not matches(name, BOUND) and "*" not in name)
    if lost := sorted({*names} & {*withheld}):
        told = ", ".join(f"{name} ({asked[name]})" for name in lost)
        raise SnapshotError(f"the application asked for {told}, which is set and was withheld: `--variable {lost[0]}` "
                            "keeps it, with its value, in the snapshot; ask for secrets in a function that "
                            "prebake.snapshot.after_restore registers, or unset it here")  # fmt: skip
    return names
