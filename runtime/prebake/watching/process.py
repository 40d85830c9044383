"""A command that is started as the leader of a session, and ended with everything that it started in it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prebake.adopt.unstartable import EMPTY, why_unstartable
from prebake.errors import ConfigError
from prebake.watching import proc

GRACE = 10.0
"""Seconds between SIGTERM and SIGKILL."""
SETTLED = 30.0
"""Seconds after which a service counts as settled, though it computes."""
_POLL = 0.005
_QUIET = 0.5
_IDLE = 0.1
"""Part of a processor that idle workers may use."""


class WatchedProcess:
    """A started command. It leads a session and a process group of its own; `stop` ends the group.

    Its output goes to a file, because a full pipe would block it. With `echo` it goes to standard error too.
    """

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], *, url: str = "", echo: bool = False
    ) -> None:
        """Start the command. `url` is the service's address, if it is known. Raises ConfigError if that fails."""
        self.url = url
        self._given = url
        self._code: int | None = None
        self._output = tempfile.NamedTemporaryFile(prefix="prebake-service.", suffix=".log")  # noqa: SIM115
        self._echo: threading.Thread | None = None
        output: Any = subprocess.PIPE if echo else self._output
        try:
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT if echo else output,
                env=environment, start_new_session=True,
            )  # fmt: skip
        except (OSError, ValueError) as error:
            self._output.close()
            raise ConfigError(f"cannot start {command[0] or EMPTY}: {why_unstartable(command[0], error)}") from error
        if self._process.stdout is not None:
            self._echo = threading.Thread(target=self._tee, args=(self._process.stdout,), daemon=True)
            self._echo.start()

    def _tee(self, pipe: IO[bytes]) -> None:
        with pipe:
            while chunk := os.read(pipe.fileno(), 1 << 16):
                try:
                    self._output.write(chunk)
                    self._output.flush()
                except ValueError:  # stopped: a process that left the group goes on writing
                    continue
                sys.stderr.write(chunk.decode("utf-8", "replace"))
                sys.stderr.flush()

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """The command's exit code, negative for a signal; None while it runs."""
        if self._code is None and self._process.returncode is None:
            # not reaped before `stop`: until then the kernel gives its group's number to nobody else
            found = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if found is not None:
                self._code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        return self._code

    def alive(self) -> bool:
        return self.exit_code() is None

    def addresses(self) -> list[str]:
        """Where it listens: the address that was given, else all ports of its processes."""
        return [self._given] if self._given else proc.listening(proc.session(self.pid))

    def memory(self) -> proc.Memory | None:
        return proc.memory_of(proc.session(self.pid))

    def settle(self, limit: float = SETTLED) -> None:
        """Wait until its processes compute next to nothing for half a second, or end, for at most `limit` seconds.

        The first worker of a server answers while others are still loading.
        """
        end, before, since = time.monotonic() + limit, -1.0, 0.0
        while self.alive() and time.monotonic() < end:
            used = proc.cpu_seconds(proc.session(self.pid))
            if abs(used - before) > _IDLE * _QUIET:
                before, since = used, time.monotonic()
            elif time.monotonic() - since >= _QUIET:
                return
            time.sleep(_QUIET / 5)

    def log(self) -> str:
        """Its output so far, also after `stop`."""
        if self._output.closed:
            return self._last_words
        return Path(self._output.name).read_text(encoding="utf-8", errors="replace")

    def stop(self, grace: float = GRACE) -> None:
        """Send SIGTERM to its process group, SIGKILL after `grace` seconds, and wait. Safe to call again."""
        if self._output.closed:
            return
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            end = time.monotonic() + grace
            while time.monotonic() < end and (self.alive() or self._members()):
                time.sleep(_POLL)
            self._signal(signal.SIGKILL)
            while self.alive():
                time.sleep(_POLL)
            self._process.wait()
        if self._echo is not None:
            self._echo.join(1)  # a process that left the group may still hold the pipe
        self._last_words = self.log()
        self._output.close()

    def _members(self) -> bool:
        return any(pid != self.pid for pid in proc.session(self.pid))

    def _signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, number)

    def __enter__(self) -> WatchedProcess:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


@contextmanager
def ended_by_signals() -> Iterator[None]:
    """Within the block, SIGTERM and SIGHUP raise SystemExit, so that what was started is ended too."""

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, end) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
