"""`prebake measure`: two commands, one command with and without `prebake run`, and jobs."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.baking import prebake
from prebake.watching.readiness import Told
from prebake_build.measure.processes import free_port

SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404); self.end_headers()
        self.wfile.write(b'{"models": {"caption": {}}}')
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200); self.end_headers()
        self.wfile.write(body + os.environ.get("ANSWER", "").encode() + "".join(sys.argv[2:]).encode())
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
DIFFERENT = "prebake: missed: the services gave different answers; --tolerance 1e-5 allows small differences of numbers"
EASY = ("--rounds", "1", "--shorter", "-10000", "--memory-above", "10000")


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "server.py").write_text(SERVER)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def both(*options: str, one: str = "python server.py {port}", other: str = "python server.py {port}") -> list[str]:
    return [*EASY, *options, "--baseline-command", one, "--command", other]


def test_two_commands_are_compared_with_any_request(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capsys, "measure", *both("--request", 'POST /x {"a": 1}', "--output", "out"))
    assert (code, err) == (0, "Wrote out/startup.html.\nWrote out/startup.json.\n")
    assert "baseline was ready when GET /health answered 200.\n" in out
    assert re.search(r"it gives the same answers, the first within \d+\.\d s of the request\.\n$", out)
    document = json.loads((project / "out" / "startup.json").read_text())
    assert (document["same_answers"], document["timelines"]) == (True, {"baseline": None, "baked": None})
    assert set(document["ratios"]) == {
        "ready", "first_answer", "first_request", "steady_request", "peak_memory", "anonymous"
    }  # fmt: skip
    assert "First answers of both: the same." in (project / "out" / "startup.html").read_text()


def test_answers_that_differ_are_a_finding(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = both("--request", "POST /x 1", other="python server.py {port} .00000001")
    code, _, err = prebake(capsys, "measure", *arguments)
    assert (code, err) == (1, f"{DIFFERENT}\n")
    assert prebake(capsys, "measure", *arguments, "--tolerance", "1e-5")[::2] == (0, "")
    assert prebake(capsys, "measure", *arguments, "--any-answer")[::2] == (0, "")


def test_a_command_is_compared_with_itself_under_prebake_run(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capsys, "measure", *EASY, "--env", "ANSWER=7", "--request", "POST /x 1", "--",
                             sys.executable, "server.py", "{port}")  # fmt: skip
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["plain", "baked", "ratio"]


def test_python_is_the_same_interpreter_on_both_sides(
    project: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "bin").mkdir()
    (project / "bin" / "python").write_text("#!/bin/sh\nexit 9\n")
    (project / "bin" / "python").chmod(0o755)
    monkeypatch.setenv("PATH", str(project / "bin"), prepend=os.pathsep)
    assert prebake(capsys, "measure", *EASY, "--until-exit", "--", "python", "-c", "")[::2] == (0, "")


def test_a_terminated_measure_ends_the_service(project: Path) -> None:
    (project / "sleeps.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(600)")
    with subprocess.Popen([sys.executable, "-m", "prebake", "measure", "--", sys.executable, "sleeps.py"]) as measure:
        while not (project / "pid").exists() or not (project / "pid").read_text():
            assert measure.poll() is None
            time.sleep(0.05)
        measure.send_signal(signal.SIGTERM)
        assert measure.wait(60) == 143
    pid = (project / "pid").read_text()
    for _ in range(600):
        if not Path("/proc", pid).exists():
            return
        time.sleep(0.05)
    pytest.fail("the service is still running")


REPORTS = """
from prebake.adopt.loads import Load, record
from prebake.adopt.redirect import frameworks
frameworks.begin()
for outcome, reason in (("mapped", None), ("original", "not baked")):
    record(Load(library="t", function="f", uri="hf:a/" + outcome, class_="t:X", outcome=outcome, reason=reason))
frameworks.settle()
"""


def test_it_is_told_what_the_service_under_prebake_run_mapped(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "job.py").write_text("import os\nif 'PREBAKE_REPORT' in os.environ:" + REPORTS.replace("\n", "\n    "))
    code, out, _ = prebake(capsys, "measure", *EASY, "--root", "models", "--until-exit", "--output", "out", "--",
                           sys.executable, "job.py")  # fmt: skip
    assert code == 0
    assert "baked: 1 of 2 loads were mapped (hf:a/original: not baked).\n" in out
    timelines = json.loads((project / "out" / "startup.json").read_text())["timelines"]
    assert timelines["plain"] is None and timelines["baked"]["loads"][0]["outcome"] == "mapped"
    assert "<h2>baked</h2><svg" in (project / "out" / "startup.html").read_text()


def test_a_prepared_project_needs_no_arguments(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "cat.json").write_text("{}")
    (project / "prebake.toml").write_text(
        f"command = [{sys.executable!r}, 'server.py', '{free_port()}']\nready = '/health'\n"
        "requests = [{path = '/x', file = 'cat.json'}]\n"
    )
    code, out, err = prebake(capsys, "measure", *EASY)
    assert (code, err) == (0, "")
    assert out.splitlines()[0].split() == ["plain", "baked", "ratio"]
    assert "it gives the same answers" in out


def test_a_job_is_measured_to_its_end(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capsys, "measure", *EASY, "--until-exit", "--", sys.executable, "-c", "print('done')")
    assert code == 0
    assert "plain was ready when it ended with exit code 0.\n" in out
    assert "Answers were not compared: no request was sent (--request), and no result read (--result).\n" in out


def test_a_job_of_seconds_has_its_memory_measured(capsys: pytest.CaptureFixture[str]) -> None:
    command = "import time; kept = bytearray(50_000_000); time.sleep(2)"
    code, out, _ = prebake(capsys, "measure", *EASY, "--until-exit", "--", sys.executable, "-c", command)
    assert code == 0
    line = next(line for line in out.splitlines() if line.startswith("peak memory"))
    medians = [float(figure) for figure in re.findall(r"(\d+) MB", line)]
    assert len(medians) == 2 and min(medians) > 50, line


def test_what_a_job_writes_is_compared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "job.py").write_text(
        "import os, sys; os.makedirs('out', exist_ok=True); open('out/a.json', 'w').write(sys.argv[1])"
    )
    options = ("--until-exit", "--result", "out")
    code, out, _ = prebake(capsys, "measure", *both(*options, one="python job.py [1.0]", other="python job.py [1.0]"))
    assert (code, out.endswith("; it gives the same answers.\n")) == (0, True)
    assert "memory" not in out, "it ended too soon for that"
    other = both(*options, one="python job.py [1.0]", other="python job.py [1.00000001]")
    assert prebake(capsys, "measure", *other)[::2] == (1, f"{DIFFERENT}\n")
    assert prebake(capsys, "measure", *other, "--tolerance", "1e-5")[::2] == (0, "")


def test_a_job_that_writes_nothing_is_told(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (project / "old.json").write_text("{}")
    os.utime(project / "old.json", (1, 1))
    code, _, err = prebake(capsys, "measure", "--until-exit", "--result", "old.json", "--", "true")
    assert (code, err) == (
        1, "prebake: error: plain: --result old.json: the service has written nothing there\n"
    )  # fmt: skip


def test_a_line_is_not_held_back_by_a_buffer(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capsys, "measure", *EASY, "--ready-line", "up", "--", sys.executable, "-c",
                           "import time; print('up'); time.sleep(600)")  # fmt: skip
    assert (code, 'baked was ready when its output contains "up".\n' in out) == (0, True)


# --- installed services ------------------------------------------------------------------------------------------


class Described:
    """A service that describes itself."""

    modules = ()

    def answer(self, models: Any) -> None:
        return None

    def request(self, models: Any) -> Any:
        from prebake.telemetry.services import Request

        return Request(method="POST", path="/x", body=b"picture") if "caption" in models else None


class Stranger(Described):
    def request(self, models: Any) -> Any:
        return None


def test_an_installed_service_names_the_request(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capsys, "measure", *both("--service", f"{__name__}:Described"))
    assert (code, "it gives the same answers" in out) == (0, True)


def test_a_named_service_without_a_request_for_the_models_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = prebake(capsys, "measure", *both("--service", f"{__name__}:Stranger"))
    assert (code, err) == (
        1, f"prebake: error: baseline: --service {__name__}:Stranger has no request for its models (caption): give one "
        "with --request; it printed nothing\n"
    )  # fmt: skip


def test_the_reference_services_request_needs_no_pillow(monkeypatch: pytest.MonkeyPatch) -> None:
    from image_analyzer.description import ImageAnalyzer
    from prebake.watching.presets import Preset

    for name in [name for name in sys.modules if name.partition(".")[0] == "PIL"]:
        monkeypatch.setitem(sys.modules, name, None)
    (question,) = Preset(ImageAnalyzer(), None)(Told(how="", document={"models": {"ocr": {}}}))
    assert question.title == "POST /ocr"


# --- wrong use ---------------------------------------------------------------------------------------------------

WAYS = (
    "give either --image and --baseline, or --command and --baseline-command, or -- COMMAND (or `command` in "
    "prebake.toml), which is compared with `prebake run -- COMMAND`"
)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], WAYS),
        (["--image", "a"], WAYS),
        (["--image", "a", "--baseline", "b", "--", "x"], WAYS),
        (["--command", "a", "--baseline", "b"], WAYS),
        (["--command", "a", "--baseline-command", "", "--rounds", "1"], WAYS),
        (["--rounds", "0"], "--rounds: expected at least 1, found 0"),
        (["--timeout", "0", "--", "x"], "--timeout: expected a number of seconds above 0, found 0"),
        (["--env", "A", "--", "x"], '--env: expected NAME=VALUE, found "A"'),
        (["--volume", "data", "--image", "a", "--baseline", "b"],
         '--volume: expected HOST:CONTAINER or HOST:CONTAINER:ro, found "data"'),
        (["--service", "x:y", "--request", "/x", "--", "x"], "--service and --request exclude each other"),
        (["--", "no-such-command"], "plain: cannot start no-such-command: command not found: install what "
         "brings it into this environment, or give its path"),
    ],
)  # fmt: skip
def test_wrong_use_is_refused(capsys: pytest.CaptureFixture[str], arguments: list[str], message: str) -> None:
    assert prebake(capsys, "measure", *arguments) == (2, "", f"prebake: error: {message}\n")


def test_a_request_without_a_known_port_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("--ready-line", "up", "--request", "/x", "--", "sh", "-c", "echo up; sleep 600")
    assert prebake(capsys, "measure", *arguments) == (
        1, "", "prebake: error: plain: GET /x: not sent: no port of the service is known: name it with --ready URL; "
        "its log ends:\nup\n\n"
    )  # fmt: skip


def test_a_url_that_is_answered_already_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    import http.server
    from threading import Thread

    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/health"
        code, _, err = prebake(capsys, "measure", "--ready", url, "--", "true")
        server.shutdown()
        thread.join()
    assert code == 2
    assert err.splitlines()[-1] == (
        f"prebake: error: {url} is answered already (501): something else listens there; end it, or give the service "
        "another port"
    )
