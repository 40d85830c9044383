"""Starts services as plain processes, without Docker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from prebake.errors import ConfigError


class ProcessLauncher:
    """Starts a command; `{port}` in its arguments is replaced with a free port.

    As the first word, `python` stands for this interpreter and `prebake` for its command line, so the virtual
    environment need not be on the PATH.
    """

    def __init__(self, label: str, command: Sequence[str], **environment: str) -> None:
        self.label = label
        self._command, self._environment = tuple(command), environment

    def launch(self) -> ProcessService:
        """Start the command. Raises ConfigError if that fails."""
        first, *rest = self._command
        known = {"python": [sys.executable], "prebake": [sys.executable, "-m", "prebake"]}
        try:
            return ProcessService([*known.get(first, [first]), *rest], self._environment)
        except OSError as error:
            raise ConfigError(f"{self.label}: cannot start {first}: {error.strerror}") from error


class ProcessService:
    """A launched process. Its output goes to a file, because a full pipe would block it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._output = tempfile.NamedTemporaryFile(prefix="prebake-service.", suffix=".log")  # noqa: SIM115
        try:
            self._process = subprocess.Popen(
                [word.replace("{port}", str(port)) for word in command],
                stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **environment},
            )  # fmt: skip
        except OSError:
            self._output.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def alive(self) -> bool:
        return self._process.poll() is None

    def log(self) -> str:
        return Path(self._output.name).read_text(encoding="utf-8", errors="replace")

    def stop(self) -> None:
        if self.alive():
            self._process.terminate()
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        self._output.close()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
