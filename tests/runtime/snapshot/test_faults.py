"""Restores where something is scarce or missing: the program goes on, or starts the ordinary way and says why."""

from __future__ import annotations

import resource
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest

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
