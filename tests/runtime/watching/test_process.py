"""A command is started in a session of its own, heard, and ended with everything that it started."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from prebake.errors import ConfigError
from prebake.watching import proc
from prebake.watching.process import WatchedProcess, ended_by_signals

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", {child!r}])
print(child.pid, flush=True)
{then}
"""
SLEEPS = "import time; time.sleep(600)"
DEAF = "import signal, time; signal.signal(15, signal.SIG_IGN); print('deaf', flush=True); time.sleep(600)"


def started(code: str, *, echo: bool = False) -> WatchedProcess:
    return WatchedProcess([sys.executable, "-c", code], os.environ, echo=echo)


def until(process: WatchedProcess, text: str) -> str:
    deadline = time.monotonic() + 60
    while text not in process.log():
        assert process.alive() or text in process.log(), process.log()
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return process.log()


def is_running(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def ended(pid: int) -> bool:
    """Whether a process that was sent SIGKILL ends; a busy kernel takes its time."""
    for _ in range(1000):
        if not is_running(pid):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize(("code", "expected"), [("raise SystemExit(7)", 7), ("import os; os.kill(os.getpid(), 9)", -9)])
def test_the_exit_code_is_that_of_the_command(code: str, expected: int) -> None:
    with started(code) as process:
        while process.alive():
            time.sleep(0.01)
        assert process.exit_code() == expected
    assert process.exit_code() == expected


def test_its_output_is_kept_after_it_was_stopped() -> None:
    process = started("import sys; print('out', flush=True); print('err', file=sys.stderr)")
    until(process, "err")
    process.stop()
    assert process.log() == "out\nerr\n"
    process.stop()  # safe to call again


def test_echoed_output_goes_to_standard_error(capfd: pytest.CaptureFixture[str]) -> None:
    with started("print('글 loading')", echo=True) as process:
        until(process, "loading")
    assert capfd.readouterr() == ("", "글 loading\n")


def test_output_after_the_end_of_what_left_the_group_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    failed: list[object] = []
    monkeypatch.setattr("threading.excepthook", failed.append)
    child = "import os, time; os.setsid(); print('left', flush=True); time.sleep(2); print('late', flush=True)"
    with started(PARENT.format(child=child, then="time.sleep(600)"), echo=True) as process:
        until(process, "left")
    assert process._echo is not None
    process._echo.join(60)
    assert (process._echo.is_alive(), failed) == (False, [])


@pytest.mark.parametrize("then", ["time.sleep(600)", "sys.exit(3)"], ids=["parent runs", "parent has ended"])
def test_stop_ends_the_children_too(then: str) -> None:
    process = started(PARENT.format(child=SLEEPS, then=then))
    child = int(until(process, "\n"))
    assert is_running(child)
    process.stop()
    assert ended(child)


def test_what_does_not_listen_to_sigterm_is_killed() -> None:
    process = started(PARENT.format(child=DEAF, then=DEAF))
    until(process, "deaf\ndeaf")
    child = int(process.log().splitlines()[0])
    process.stop(grace=0.2)
    assert process.exit_code() == -9
    assert ended(child)


def test_only_its_own_group_is_ended() -> None:
    with subprocess.Popen([sys.executable, "-c", SLEEPS]) as other:
        started(SLEEPS).stop()
        assert other.poll() is None
        other.kill()


@pytest.mark.parametrize(
    ("command", "message"),
    [("no-such-command", "cannot start no-such-command: command not found: install what "
         "brings it into this environment, or give its path"),
     ("/", "cannot start /: cannot be executed: it is a folder")],
)  # fmt: skip
def test_a_command_that_cannot_be_started_is_refused(command: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        WatchedProcess([command], os.environ)
    assert str(caught.value) == message


def test_the_ports_and_the_memory_are_those_of_all_its_processes() -> None:
    listens = (
        "import socket, time; s = socket.create_server(('127.0.0.1', 0)); t = socket.create_server(('', 0));"
        "print('ports', s.getsockname()[1], t.getsockname()[1], flush=True); time.sleep(600)"
    )
    with started(PARENT.format(child=listens, then="time.sleep(600)")) as process:
        until(process, "ports")
        ports = sorted(map(int, until(process, "ports").split()[-2:]))
        assert process.addresses() == [f"http://127.0.0.1:{port}" for port in ports]
        both = proc.session(process.pid)
        memory, own = process.memory(), proc.memory_of([process.pid])
    assert len(both) == 2
    assert memory is not None and own is not None and memory.peak > own.peak > own.anonymous > 0
    assert proc.memory_of(both) is None  # they are gone


def test_a_terminated_command_line_ends_what_it_started() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(SystemExit) as caught, ended_by_signals():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    assert (caught.value.code, signal.getsignal(signal.SIGTERM)) == (143, before)


def test_a_service_settles_when_its_children_have_computed() -> None:
    works = (
        "import time; end = time.process_time() + 1\nwhile time.process_time() < end: pass\n"
        "print('done', flush=True); time.sleep(600)"
    )
    with started(PARENT.format(child=works, then="time.sleep(600)")) as process:
        process.settle()
        assert "done" in process.log()


def test_what_never_rests_counts_as_settled_after_the_limit() -> None:
    with started("print('busy', flush=True)\nwhile True: pass") as process:
        until(process, "busy")
        process.settle(limit=0.3)
        assert process.alive()
