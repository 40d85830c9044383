"""Starts services as plain processes, without Docker."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Sequence

from prebake.errors import ConfigError
from prebake.watching.process import WatchedProcess


class ProcessLauncher:
    """Starts a command; `{port}` in its arguments is replaced with a free port.

    As the first word, `python` stands for this interpreter and `prebake` for its command line, so the virtual
    environment need not be on the PATH. A command without `{port}` is found by the ports on which it listens.
    """

    def __init__(self, label: str, command: Sequence[str], **environment: str) -> None:
        self.label = label
        self._command, self._environment = tuple(command), environment

    def launch(self) -> WatchedProcess:
        """Start the command. Raises ConfigError if that fails."""
        first, *rest = self._command
        known = {"python": [sys.executable], "prebake": [sys.executable, "-m", "prebake"]}
        command = [*known.get(first, [first]), *rest]
        url = ""
        if any("{port}" in word for word in command):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            command = [word.replace("{port}", str(port)) for word in command]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **self._environment}
        try:
            return WatchedProcess(command, environment, url=url)
        except ConfigError as error:
            raise ConfigError(f"{self.label}: {error}") from error


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
