"""Services in tests: a running process, questions to it, and models that are only pretended."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from image_analyzer.example import example
from prebake.errors import UnknownModelError
from prebake.telemetry.status import State, Status
from prebake_build.measure.processes import free_port


def picture(kind: str = "PNG", size: tuple[int, int] = (640, 480)) -> bytes:
    """The example image as a file."""
    file = io.BytesIO()
    example().resize(size).save(file, kind)
    return file.getvalue()


def ask(url: str, path: str, body: bytes | None = None, method: str | None = None) -> tuple[int, Any]:
    """Status and JSON (or text) of one request; POST where there is a body."""
    status, headers, content = request(url, path, body, method)
    text = content.decode()
    return status, json.loads(text) if headers["Content-Type"] == "application/json" else text


def request(
    url: str, path: str, body: bytes | None = None, method: str | None = None
) -> tuple[int, Mapping[str, str], bytes]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=60)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body)
        response = connection.getresponse()
        return response.status, dict(response.headers), response.read()
    finally:
        connection.close()


class Process:
    """`prebake serve`, or another module that takes `--port`, as a process; stopped when the block ends.

    `prefix` are the words before the interpreter: a program that starts it.
    """

    def __init__(
        self, *arguments: object, module: str = "prebake", prefix: Sequence[str] = (), **environment: str
    ) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115
        self.process = subprocess.Popen(
            [*prefix, sys.executable, "-m", module, *map(str, arguments), "--port", str(port)],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env={**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1", **environment},
        )  # fmt: skip

    def __enter__(self) -> Process:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self._log.close()

    @property
    def log(self) -> str:
        return Path(self._log.name).read_text(errors="replace")

    def until(self, path: str, holds: Callable[[int, Any], bool]) -> Any:
        """Ask until the answer is as wished; what it was. Fails where the process ends, or after two minutes."""
        deadline = time.monotonic() + 120
        while True:
            assert time.monotonic() < deadline, self.log
            try:
                status, document = ask(self.url, path)
            except OSError:
                assert self.process.poll() is None, self.log
            else:
                if holds(status, document):
                    return document
            time.sleep(0.02)

    def until_ready(self) -> Any:
        return self.until("/readyz", lambda status, _: status == 200)

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Send the signal and wait; the exit code."""
        self.process.send_signal(number)
        return self.process.wait(30)


class Pretended:
    """Models that are whatever a test says. Values that are errors are raised."""

    def __init__(self, **models: Any) -> None:
        self.models = models
        self.states: dict[str, State] = dict.fromkeys(models, State.READY)
        self.optional: set[str] = set()
        self.baked: list[Any] = []

    @property
    def ready(self) -> bool:
        return all(status.state is State.READY for status in self.status() if status.required)

    def status(self) -> tuple[Status, ...]:
        return tuple(
            Status(name=name, state=state, required=name not in self.optional,
                   tier="mapped" if state is State.READY else None, seconds=0.25 if state is State.READY else None)
            for name, state in self.states.items()
        )  # fmt: skip

    def __contains__(self, name: object) -> bool:
        return name in self.models

    def __getitem__(self, name: str) -> Any:
        if name not in self.models:
            raise UnknownModelError(f'/models: no model "{name}"')
        model = self.models[name]
        if isinstance(model, Exception):
            raise model
        return model() if callable(model) else model


class Reader:
    """A reader that reads the same from every picture."""

    reader: Any

    def __init__(self) -> None:
        self.reader = self

    def readtext(self, pixels: Any) -> list[tuple[Any, str, float]]:
        return [([[0, 0], [pixels.shape[1], 0], [9, 9], [0, 9]], "글", 0.5)]
