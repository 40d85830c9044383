"""Restores where something is scarce or missing: the program goes on, or starts the ordinary way and says why."""

from __future__ import annotations

import ctypes
import errno
import os
import resource
import shutil
import struct
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

from helpers.restore_kills import kill
from helpers.snapshots import Program

TELLING = """
    import os, sys
    from prebake import snapshot
    from prebake.telemetry import restored
    much = bytearray(b"much" * (8 << 18))
    snapshot.here()
    much[:4096] = bytes(4096)
    told = restored.document()
    print(told["tier"], os.getuid(), told["reason"])
"""


@pytest.fixture
def telling(program: Program) -> Program:
    """A program with a snapshot, that prints how it was started."""
    program.write(TELLING)
    done = program.dump()
    assert done.returncode == 0, done.stderr
    return program


def limited(program: Program, limit: Callable[[], None]) -> subprocess.CompletedProcess[str]:
    """A restore in a process that `limit` has limited."""
    return subprocess.run(
        [*program.restorer, *program.command()], env=program.variables(), preexec_fn=limit, capture_output=True,
        text=True, timeout=60, check=False,
    )  # fmt: skip


def unshared(program: Program, *options: str, before: str = "") -> subprocess.CompletedProcess[str]:
    """A restore in new namespaces; skips the test where these can't be made."""
    unshare = shutil.which("unshare")
    if not unshare or subprocess.run([unshare, *options, "true"], capture_output=True, check=False).returncode:
        pytest.skip("no namespaces here")
    script = f'{before}exec "$@"'
    return subprocess.run(
        [unshare, *options, "sh", "-ec", script, "sh", *program.restorer, *program.command()],
        env=program.variables(), capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_eight_at_once(telling: Program) -> None:
    with ThreadPoolExecutor(8) as pool:
        outputs = {done.stdout for done in pool.map(lambda _: telling.restore(), range(8))}
    (output,) = outputs
    assert output.startswith("snapshot ")


def test_a_user_namespace(telling: Program) -> None:
    done = unshared(telling, "--user", "--map-root-user")
    assert (done.returncode, done.stdout, done.stderr) == (0, "snapshot 0 None\n", "")


def test_no_proc(telling: Program) -> None:
    options = ("--user", "--map-root-user", "--mount")
    done = unshared(telling, *options, before="mount -t tmpfs none /proc && ")
    if done.returncode == 32:
        pytest.skip(f"no mount in a namespace here: {done.stderr}")
    assert (done.returncode, done.stdout) == (0, "ordinary 0 /proc can't be read\n")
    assert done.stderr == "prebake: the snapshot is not used: /proc can't be read\n"


def test_few_descriptors(telling: Program) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (4, 4))

    done = limited(telling, limit)
    assert done.stderr.splitlines()[0] == "prebake: the snapshot is not used: there is no pipe"


def test_no_address_space(telling: Program) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (24 << 20, 24 << 20))

    done = limited(telling, limit)
    first = done.stderr.splitlines()[0]
    assert first.startswith("prebake: the snapshot is not used: ")
    assert first.endswith(" can't be mapped")


ERRNO, KILL = 0x50000 | errno.EPERM, 0x80000000
"""What a filter answers: an error (SECCOMP_RET_ERRNO), or the process's end by SIGSYS (SECCOMP_RET_KILL_PROCESS)."""
PR_SET_MM = 35


def forbidding(call: int, action: int, first: int | None = None) -> Callable[[], None]:
    """What installs a seccomp filter against a system call, or against it with this first argument."""

    def load(offset: int) -> bytes:
        return struct.pack("HBBI", 0x20, 0, 0, offset)

    def unless(value: int, skipped: int) -> bytes:
        return struct.pack("HBBI", 0x15, 0, skipped, value)

    def end(value: int) -> bytes:
        return struct.pack("HBBI", 0x06, 0, 0, value)

    lines = [load(0), unless(call, 1 if first is None else 3)]
    lines += [] if first is None else [load(16), unless(first, 1)]
    lines += [end(action), end(0x7FFF0000)]
    code = ctypes.create_string_buffer(b"".join(lines))
    program = struct.pack("HxxxxxxP", len(lines), ctypes.addressof(code))
    libc = ctypes.CDLL(None, use_errno=True)

    def install() -> None:
        assert not libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
        assert not libc.prctl(22, 2, program), errno.errorcode[ctypes.get_errno()]  # PR_SET_SECCOMP
        assert code  # it must live as long as the function

    return install


@pytest.mark.parametrize(
    ("call", "first", "reason"),
    [
        (57, None, "no process can be started"),  # fork
        (293, None, "there is no pipe"),  # pipe2
        (157, PR_SET_MM, "the kernel does not let the heap's end be set (prctl PR_SET_MM_MAP)"),
    ],
    ids=["fork", "pipe", "prctl"],
)
def test_a_seccomp_filter_forbids_a_call(telling: Program, call: int, first: int | None, reason: str) -> None:
    done = limited(telling, forbidding(call, ERRNO, first))
    assert done.stderr == f"prebake: the snapshot is not used: {reason}\n"
    assert (done.returncode, done.stdout) == (0, f"ordinary {os.getuid()} {reason}\n")


@pytest.mark.parametrize(
    "call",
    [187, 25, 128, 273, 334],
    ids=["readahead", "mremap", "rt_sigtimedwait", "set_robust_list", "rseq"],
)
def test_calls_that_a_restore_can_do_without(telling: Program, call: int) -> None:
    done = limited(telling, forbidding(call, ERRNO))
    assert (done.returncode, done.stdout, done.stderr) == (0, f"snapshot {os.getuid()} None\n", "")


def test_a_seccomp_filter_that_kills(telling: Program) -> None:
    done = limited(telling, forbidding(157, KILL, PR_SET_MM))
    reason = "the restored process ended before it was ready, by signal 31"
    assert done.stderr == f"prebake: the snapshot is not used: {reason}\n"
    assert (done.returncode, done.stdout) == (0, f"ordinary {os.getuid()} {reason}\n")


def test_killed_at_any_moment_of_the_restore(program: Program) -> None:
    """`python -m helpers.restore_kills` does this more often, and with containers."""
    tally = kill(program, 24)
    assert tally["ordinary"] > 0
    assert sum(tally.values()) == 24
