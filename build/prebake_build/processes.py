"""Services as plain processes: the launcher that needs no Docker."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path


class ProcessLauncher:
    """Starts a Python module with `--port` appended to its arguments, in a clean environment."""

    def __init__(self, label: str, arguments: Sequence[str], **environment: str) -> None:
        self.label = label
        self._arguments, self._environment = tuple(arguments), environment

    def launch(self) -> ProcessService:
        return ProcessService([sys.executable, *self._arguments], self._environment)


class ProcessService:
    """One such process. Its output goes to a file: a full pipe would stop it."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str]) -> None:
        port = _free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._output = tempfile.NamedTemporaryFile(prefix="prebake-service.", suffix=".log")  # noqa: SIM115
        self._process = subprocess.Popen(
            [*command, "--port", str(port)], stdin=subprocess.DEVNULL, stdout=self._output, stderr=self._output,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **environment},
        )  # fmt: skip

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


def baked(root: Path, label: str = "baked", **environment: str) -> ProcessLauncher:
    """The service of baked models."""
    return ProcessLauncher(label, ["-m", "prebake", "serve", "--root", str(root)], **environment)


def naive(checkpoints: Path) -> ProcessLauncher:
    """The service without Prebake, on checkpoints that `prebake_build.naive` prepared."""
    return ProcessLauncher("naive", ["-m", "prebake_build.naive", "serve", "--checkpoints", str(checkpoints)])


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
