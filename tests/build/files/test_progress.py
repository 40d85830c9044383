"""Long work tells its rate and the time left: a bar on a terminal, whole lines in a log, nothing of short work."""

from __future__ import annotations

import fcntl
import hashlib
import os
import pty
import struct
import subprocess
import sys
import termios
from contextlib import suppress
from pathlib import Path

import pytest

from prebake_build.files import progress
from prebake_build.files.digest import sha256_of

_WORK = """
import sys
from prebake_build.files import progress
progress.PAUSE = 0
with progress.telling("writing", 4_000_000):
    for _ in range(4):
        progress.add(1_000_000)
"""


class Clock:
    """Time that a test decides about."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        monkeypatch.setattr("prebake_build.files.progress.time.monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_log_gets_a_line_now_and_then_with_rate_and_time_left(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    with progress.telling("m: writing", 8_000_000_000):
        for _ in range(8):
            clock.now += 10
            progress.add(500_000_000)
    assert capsys.readouterr().err.splitlines() == [
        "m: writing: 1 GB of 8 GB (12%), 50 MB/s, 2 min 20 s left",
        "m: writing: 2 GB of 8 GB (25%), 50 MB/s, 2 min 0 s left",
        "m: writing: 3 GB of 8 GB (38%), 50 MB/s, 1 min 40 s left",
        "m: writing: 4 GB of 8 GB (50%), 50 MB/s, 1 min 20 s left",
    ]


def test_work_that_is_soon_done_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.telling("m: writing", 10):
        progress.add(10)
    progress.add(10)
    assert capsys.readouterr() == ("", "")


def test_without_a_total_there_is_no_time_left_and_what_was_there_before_is_no_rate(
    clock: Clock, capsys: pytest.CaptureFixture[str]
) -> None:
    clock.now += 1
    with progress.Progress("url", None, done=5_000_000) as one, progress.Progress("url", 8_000_000_000_000) as other:
        clock.now += 20
        one.add(1_000_000)
        other.add(20_000_000)
    assert capsys.readouterr().err == ("url: 6 MB, 50 kB/s\nurl: 20 MB of 8 TB (0%), 1 MB/s, 2222 h 13 min left\n")


def test_inner_work_is_told_instead_of_the_outer(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.telling("outer", 100), progress.telling("inner", 10):
        clock.now += 20
        progress.add(5)
    assert capsys.readouterr().err == "inner: 5 B of 10 B (50%), 0 B/s, 20 s left\n"


def test_hashing_a_file_counts_its_bytes(tmp_path: Path, clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_bytes(b"x" * 1000)
    with progress.telling("hashing", 2000):
        clock.now += 20
        assert sha256_of(tmp_path / "file") == hashlib.sha256(b"x" * 1000).hexdigest()
    assert capsys.readouterr().err == "hashing: 1 kB of 2 kB (50%), 50 B/s, 20 s left\n"


def test_a_log_has_no_carriage_return() -> None:
    done = subprocess.run([sys.executable, "-c", _WORK], capture_output=True, check=True)
    lines = done.stderr.decode().splitlines()
    assert len(lines) == 4 and lines[-1].startswith("writing: 4 MB of 4 MB (100%), ")
    assert b"\r" not in done.stderr and b"\x1b" not in done.stderr


@pytest.mark.parametrize("term", ["xterm", "dumb"])
def test_a_terminal_gets_a_bar_without_colours_unless_it_is_dumb(term: str) -> None:
    ours, its = pty.openpty()
    fcntl.ioctl(its, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    child = subprocess.Popen([sys.executable, "-c", _WORK], stderr=its, env={**os.environ, "TERM": term})
    os.close(its)
    written = b""
    with suppress(OSError):  # EIO: the other end is closed
        while chunk := os.read(ours, 65536):
            written += chunk
    os.close(ours)
    assert child.wait() == 0
    assert (b"\rwriting:" in written, b"B/s" in written, b"\x1b[3" in written) == (term == "xterm", True, False)
