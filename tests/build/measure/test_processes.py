"""Plain processes are launched on a free port, measured and ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection
from pathlib import Path

import pytest

from prebake.errors import ConfigError, PrebakeError
from prebake.telemetry.services import Request
from prebake_build.measure.compare import measure
from prebake_build.measure.processes import ProcessLauncher


def question(models: Collection[str]) -> Request | None:
    return Request(method="POST", path="/caption", body=b"picture")


SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        memory = {"now": {"anonymous": 1, "peak_rss": 2}}
        body = json.dumps({"ready": True, "models": {"caption": {}}, "memory": memory})
        self.send_response(200); self.end_headers(); self.wfile.write(body.encode())
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"])); self.do_GET()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


def test_a_process_is_launched_measured_and_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    launcher = ProcessLauncher("plain", ["python", "-m", "server", "{port}"])
    service = launcher.launch()
    monkeypatch.setattr(launcher, "launch", lambda: service)
    assert measure(launcher, question).peak_memory == 2
    assert not service.alive()
    service.stop()  # safe to call again


def test_a_process_that_ends_is_told_with_what_it_wrote() -> None:
    launcher = ProcessLauncher("plain", ["python", "-c", "import sys; sys.exit('no such model')"])
    with pytest.raises(PrebakeError) as caught:
        measure(launcher, question)
    assert str(caught.value) == "plain: ended before it was ready; its log ends:\nno such model\n"


def test_a_process_that_does_not_listen_to_sigterm_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = ProcessLauncher("deaf", ["python", "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); "
                                              "print('deaf', "
                                              "flush=True); time.sleep(600)"])  # fmt: skip
    service = launcher.launch()
    while "deaf" not in service.log():
        time.sleep(0.01)
    process = service._process
    wait: Callable[..., int] = process.wait
    monkeypatch.setattr(process, "wait", lambda timeout=None: wait(0.1 if timeout else None))
    service.stop()
    assert process.returncode == -9


def test_a_command_that_cannot_be_started_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ProcessLauncher("plain", ["no-such-command", "{port}"]).launch()
    assert str(caught.value) == "plain: cannot start no-such-command: No such file or directory"
