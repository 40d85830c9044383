"""Starts services as plain processes, without Docker."""

from __future__ import annotations

import json
import os
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from prebake.adopt import ENV_REPORT
from prebake.errors import ConfigError
from prebake.watching.process import WatchedProcess


class ProcessLauncher:
    """Starts a command; `{port}` in its arguments is replaced with a free port.

    Its first word is taken as `with_interpreter` says. A command without `{port}` is found by the ports on which it
    listens. `environment` is added to this process's. A command under `prebake run` writes its report to the file
    `report`, which `timeline` reads.
    """

    def __init__(
        self, label: str, command: Sequence[str], environment: Mapping[str, str] | None = None,
        *, report: Path | None = None,
    ) -> None:  # fmt: skip
        self.label = label
        self._command, self._environment = tuple(command), dict(environment or {})
        self._report = report

    def timeline(self) -> dict[str, Any] | None:
        """The last report of the launched service, of any of its processes; None if there is none."""
        for path in self._reports():
            try:
                document = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError):
                continue
            if isinstance(document, dict):
                return document
        return None

    def _reports(self) -> list[Path]:
        """The file of the service's first process and those of others: the first may be the last to load."""
        return sorted(self._report.parent.glob(f"{self._report.name}*")) if self._report is not None else []

    def launch(self) -> WatchedProcess:
        """Start the command. Raises ConfigError if that fails."""
        command = with_interpreter(self._command)
        url = ""
        if any("{port}" in word for word in command):
            port = free_port()
            url = f"http://127.0.0.1:{port}"
            command = [word.replace("{port}", str(port)) for word in command]
        environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **self._environment}
        if self._report is not None:
            for path in self._reports():
                path.unlink(missing_ok=True)
            environment[ENV_REPORT] = str(self._report)
        try:
            return WatchedProcess(command, environment, url=url)
        except ConfigError as error:
            raise ConfigError(f"{self.label}: {error}") from error


def with_interpreter(command: Sequence[str]) -> list[str]:
    """The command, whose first word `python` stands for this interpreter and `prebake` for its command line, so the
    virtual environment need not be on the PATH."""
    first, *rest = command
    known = {"python": [sys.executable], "prebake": [sys.executable, "-m", "prebake"]}
    return [*known.get(first, [first]), *rest]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
