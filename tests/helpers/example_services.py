"""The examples as processes, plain or behind a prefix: started, asked, and ended with all that they started."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers import ROOT

SECONDS = 100
"""After which a start counts as failed."""


@dataclass(frozen=True, eq=False)
class Service:
    """An example that answers over HTTP. In `command`, `{bin}` is the folder of its interpreter."""

    folder: Path
    command: tuple[str, ...]
    port: int
    path: str
    question: Mapping[str, Any]


EMBEDDINGS = Service(
    folder=ROOT / "examples" / "embeddings",
    command=("{bin}/uvicorn", "app:app", "--port", "8110", "--workers", "2"),
    port=8110,
    path="/embed",
    question={"texts": ["How do I reset my password?", "A cat sleeps.", "Wo ist der Bahnhof?", "비밀번호"]},
)
PICTURES = Service(
    folder=ROOT / "examples" / "pictures",
    command=("{bin}/python", "server.py"),
    port=8000,
    path="/predict",
    question={"prompt": "a lighthouse", "seed": 7, "width": 128, "height": 128, "steps": 2},
)
TRANSCRIPTS = ROOT / "examples" / "transcripts"


@dataclass
class Running:
    """A started service."""

    service: Service
    process: subprocess.Popen[bytes]
    log_path: Path
    answers: list[bytes] = field(default_factory=list)

    @property
    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def until_ready(self) -> None:
        deadline = time.monotonic() + SECONDS
        while True:
            assert time.monotonic() < deadline, self.log
            assert self.process.poll() is None, self.log
            with suppress(OSError):
                if self.ask("GET", "/health")[0] == 200:
                    return
            time.sleep(0.05)

    def ask(self, method: str, path: str, document: object = None) -> tuple[int, bytes]:
        """Status and body."""
        connection = http.client.HTTPConnection("127.0.0.1", self.service.port, timeout=60)
        try:
            body = None if document is None else json.dumps(document).encode()
            connection.request(method, path, body, {"Content-Type": "application/json"} if body else {})
            response = connection.getresponse()
            return response.status, response.read()
        finally:
            connection.close()

    def answer(self) -> bytes:
        """What it answers its question with."""
        status, body = self.ask("POST", self.service.path, self.service.question)
        assert status == 200, f"{status} {body[:300]!r}\n{self.log}"
        return body


@contextmanager
def started(
    service: Service, python: Path, environment: Mapping[str, str], prefix: Sequence[str] = ()
) -> Iterator[Running]:
    """The service, ready; ended when the block ends."""
    command = [*prefix, *(part.format(bin=python.parent) for part in service.command)]
    with tempfile.TemporaryDirectory() as scratch, (Path(scratch) / "log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=service.folder, env=dict(environment), stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            start_new_session=True,
        )  # fmt: skip
        running = Running(service, process, Path(scratch) / "log")
        try:
            running.until_ready()
            yield running
        finally:
            _end(process)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Ask it to end, and then end its whole session: servers leave workers behind."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(15)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def write_sounds(folder: Path) -> None:
    """Two short sounds: one that rises from 220 Hz at 16 kHz, one of 330 Hz at 24 kHz with two channels."""
    import numpy
    import soundfile

    folder.mkdir(parents=True)
    seconds = numpy.arange(16000) / 16000
    rising = 0.5 * numpy.sin(2 * numpy.pi * (220 + 60 * seconds) * seconds)
    soundfile.write(folder / "rising.wav", rising, 16000)
    even = 0.5 * numpy.sin(2 * numpy.pi * 330 * numpy.arange(12000) / 24000)
    soundfile.write(folder / "even.wav", numpy.stack([even, even / 2], axis=1), 24000)


def transcribed(
    python: Path, environment: Mapping[str, str], sounds: Path, results: Path, prefix: Sequence[str] = ()
) -> tuple[dict[str, Any], str]:
    """Run the worker over the sounds; its results by file name, and what it wrote to its standard streams."""
    command = [*prefix, python, "worker.py", "--sounds", sounds, "--results", results]
    done = subprocess.run(
        list(map(str, command)), cwd=TRANSCRIPTS, env=dict(environment), capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return {
        path.name: json.loads(path.read_text()) for path in sorted(results.glob("*.json"))
    }, done.stdout + done.stderr
