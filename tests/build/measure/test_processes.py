"""Plain processes are launched on a free port, measured and ended."""

from __future__ import annotations

from pathlib import Path

import pytest

from prebake.errors import ConfigError, PrebakeError
from prebake.telemetry.services import Request
from prebake.watching.questions import HttpQuestion
from prebake.watching.readiness import AtAnyPath, AtExit, AtLine, AtUrl
from prebake_build.measure.compare import Ask, measure
from prebake_build.measure.processes import ProcessLauncher, free_port

ASK = Ask(
    ready=lambda: AtUrl("/readyz"),
    questions=lambda told: [HttpQuestion(Request(method="POST", path="/caption", body=b"picture"))],
)
SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"ready": True, "models": {"caption": {}}})
        self.send_response(200); self.end_headers(); self.wfile.write(body.encode())
    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"])); self.do_GET()
http.server.HTTPServer(("127.0.0.1", int(sys.argv[-1])), Handler).serve_forever()
"""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


@pytest.mark.usefixtures("server")
def test_a_process_is_launched_measured_and_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    launcher = ProcessLauncher("plain", ["python", "-m", "server", "{port}"])
    service = launcher.launch()
    monkeypatch.setattr(launcher, "launch", lambda: service)
    sample = measure(launcher, ASK)
    assert (sample.peak_memory or 0) > (sample.anonymous or 0) > 1_000_000
    assert [answer.body for answer in sample.answers] == [b'{"ready": true, "models": {"caption": {}}}']
    assert not service.alive()
    service.stop()  # safe to call again


@pytest.mark.usefixtures("server")
def test_without_a_port_in_the_command_the_port_is_found() -> None:
    launcher = ProcessLauncher("plain", ["python", "-m", "server", str(free_port())])
    sample = measure(launcher, Ask(ready=AtAnyPath))
    assert sample.told == "GET /readyz answered 200"


def test_a_job_is_measured_to_its_end() -> None:
    launcher = ProcessLauncher("job", ["python", "-c", "print('done')"])
    sample = measure(launcher, Ask(ready=AtExit))
    assert (sample.told, sample.first_answer) == ("it ended with exit code 0", None)


def test_a_job_that_fails_is_told() -> None:
    with pytest.raises(PrebakeError) as caught:
        measure(ProcessLauncher("job", ["python", "-c", "raise SystemExit('no input')"]), Ask(ready=AtExit))
    assert str(caught.value) == "job: ended with exit code 1 before it was ready; its log ends:\nno input\n"


def test_a_line_of_the_output_tells() -> None:
    code = "import time; print('loading'); print('waiting for work', flush=True); time.sleep(600)"
    sample = measure(ProcessLauncher("worker", ["python", "-c", code]), Ask(ready=lambda: AtLine("waiting for")))
    assert sample.told == 'its output contains "waiting for"'


def test_a_process_that_ends_is_told_with_what_it_wrote() -> None:
    launcher = ProcessLauncher("plain", ["python", "-c", "import sys; sys.exit('no such model')"])
    with pytest.raises(PrebakeError) as caught:
        measure(launcher, ASK)
    assert str(caught.value) == "plain: ended with exit code 1 before it was ready; its log ends:\nno such model\n"


def test_a_command_that_cannot_be_started_is_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        ProcessLauncher("plain", ["no-such-command", "{port}"]).launch()
    assert str(caught.value) == (
        "plain: cannot start no-such-command: command not found: install what brings it into this environment, or "
        "give its path"
    )


def test_the_report_is_that_of_any_process_and_of_this_start_alone(tmp_path: Path) -> None:
    code = "import os; open(os.environ['PREBAKE_REPORT'] + '.7', 'w').write('{\"loads\": []}')"
    launcher = ProcessLauncher("baked", ["python", "-c", code], report=tmp_path / "report")
    (tmp_path / "report").write_text('{"of": "an earlier start"}')
    assert measure(launcher, Ask(ready=AtExit)).startup == {"loads": []}
    (tmp_path / "report.7").write_text("[")
    assert launcher.timeline() is None
