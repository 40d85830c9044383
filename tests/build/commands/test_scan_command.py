"""`prebake scan` as a command: when it ends, what it tells and writes, and what it refuses. The loads are written down
by hand."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from helpers.baking import prebake
from helpers.hub_server import COMMIT
from helpers.scans import WORKER, ours, worker

pytestmark = pytest.mark.usefixtures("scanned")

SOURCE = f"hf:acme/tiny@{COMMIT}"
TABLE = '[models.net]\nsource = "url:https://example.org/net.pth"\nclass = "tensors"\n'


def test_a_worker_without_http_runs_to_its_end(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capfd, "scan", "--until-exit", *worker())
    assert (code, TABLE in (scanned / "models.toml").read_text()) == (0, True)
    assert "The service ran for " in out


def test_a_worker_is_ready_when_it_says_so(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capfd, "scan", "--ready-line", "loaded", *worker("time.sleep(600)"))
    assert (code, '(its output contains "loaded")' in out) == (0, True)


def test_a_time_ends_it_whether_it_is_ready_or_not(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", "--seconds", "4", *worker("time.sleep(600)"))
    assert (code, ours(err)) == (0, "Wrote models.toml with net. Next: prebake lock, then prebake init.\n")
    assert "The service ran for " in out


def test_a_service_that_is_never_ready_is_told_and_what_was_seen_is_kept(
    scanned: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = prebake(capfd, "scan", "--timeout", "4", *worker("time.sleep(600)"))
    assert code == 1
    assert ours(err) == (
        "Wrote models.toml with net. Next: prebake lock, then prebake init.\n"
        "prebake: the service was not ready within 4 s (it listens on no port): name what tells it with --ready, or "
        "wait longer with --timeout, or say with --seconds how long to run it\n"
    )


def test_a_service_that_ends_later_with_an_error_passes_its_code_on(capfd: pytest.CaptureFixture[str]) -> None:
    later = worker("time.sleep(0.3); sys.exit(7)")
    for options in (["--seconds", "60", "--ready-line", "loaded"], ["--ready-line", "loaded"]):
        code, _, err = prebake(capfd, "scan", *options, *later)
        assert (code, ours(err).splitlines()[-1]) == (7, "prebake: the service ended with exit code 7")


def test_a_service_that_ends_with_a_request_passes_its_code_on(capfd: pytest.CaptureFixture[str]) -> None:
    class_ = "class Ends(http.server.BaseHTTPRequestHandler):\n    def do_GET(self): os.kill(os.getpid(), 9)\n"
    serves = f"import http.server, os\n{class_}http.server.HTTPServer(('127.0.0.1', 0), Ends).serve_forever()"
    code, _, err = prebake(capfd, "scan", "--ready", "tcp", "--request", "/x", *worker(serves))
    assert (code, ours(err).splitlines()[-2:]) == (
        137, ["prebake: GET /x: gave no answer: RemoteDisconnected: Remote end closed connection without response",
              "prebake: the service ended with signal 9 (SIGKILL, perhaps out of memory)"]
    )  # fmt: skip


def test_a_failed_request_is_told_and_what_was_seen_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    serves = "import http.server; http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)"
    code, _, err = prebake(capfd, "scan", "--request", "GET /x", *worker(f"{serves}.serve_forever()"))
    assert code == 1
    assert ours(err).splitlines()[-1].startswith('prebake: GET /x: was answered with 501: "<!DOCTYPE HTML')


def test_a_request_without_a_known_port_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = prebake(capfd, "scan", "--ready-line", "loaded", "--request", "/x", *worker("time.sleep(600)"))
    assert (code, ours(err).splitlines()[-1]) == (
        1, "prebake: GET /x: not sent: no port of the service is known: name it with --ready URL"
    )  # fmt: skip


def test_nothing_is_written_where_that_is_asked(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (scanned / "models.toml").write_text('[models.a] # mine\nsource = "path:a"\n')
    code, out, err = prebake(capfd, "scan", "--until-exit", "--diff", *worker())
    assert (code, ours(err)) == (0, "")
    assert out == (
        '--- a/models.toml\n+++ b/models.toml\n@@ -1,2 +1,6 @@\n [models.a] # mine\n source = "path:a"\n+\n+'
        + TABLE.rstrip().replace("\n", "\n+")
        + "\n"
    )
    code, out, _ = prebake(capfd, "scan", "--until-exit", "--print", *worker())
    assert (code, out) == (0, f'[models.a] # mine\nsource = "path:a"\n\n{TABLE}')
    assert (scanned / "models.toml").read_text() == '[models.a] # mine\nsource = "path:a"\n'


def test_a_second_scan_changes_nothing(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prebake(capfd, "scan", "--until-exit", *worker())
    before = (scanned / "models.toml").read_bytes()
    code, _, err = prebake(capfd, "scan", "--until-exit", *worker())
    assert (code, ours(err)) == (0, "models.toml: nothing to add.\n")
    assert (scanned / "models.toml").read_bytes() == before


def test_what_cannot_be_baked_is_told_and_kept_as_a_comment(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    remote = f'record(Load(library="t", function="f", uri="{SOURCE}", class_="transformers:X", obstacle="remote code"))'
    code, _, err = prebake(capfd, "scan", "--until-exit", *worker(remote))
    assert (code, ours(err).splitlines()[1:]) == (0, [f"prebake: {SOURCE}: cannot be baked: remote code"])
    assert f"\n# Not baked: {SOURCE} (transformers:X): remote code\n" in (scanned / "models.toml").read_text()


def test_a_hub_that_cannot_be_reached_leaves_it_unpinned(
    scanned: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    unpinned = 'record(Load(library="t", function="f", uri="hf:acme/tiny", class_="transformers:X"))'
    code, _, err = prebake(capfd, "scan", "--until-exit", *worker(unpinned))
    assert code == 0
    assert "prebake: hf:acme/tiny: is not pinned: hf:acme/tiny: cannot reach the hub at http://127.0.0.1:1: " in err
    assert (
        '# Not pinned: the hub did not tell the commit. `prebake lock` will.\n[models.tiny]\nsource = "hf:acme/tiny"\n'
        in (scanned / "models.toml").read_text()
    )


def test_a_prepared_project_needs_no_arguments(scanned: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (scanned / "worker.py").write_text(WORKER)
    (scanned / "prebake.toml").write_text(f"command = [{sys.executable!r}, 'worker.py']\n")
    assert prebake(capfd, "scan")[0] == 0
    assert TABLE in (scanned / "models.toml").read_text()


def test_a_terminated_scan_ends_the_service(scanned: Path) -> None:
    (scanned / "sleeps.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
    with subprocess.Popen([sys.executable, "-m", "prebake", "scan", "--", sys.executable, "sleeps.py"],
                          stderr=subprocess.PIPE, text=True) as scan:  # fmt: skip
        assert scan.stderr is not None
        pid = int(scan.stderr.readline())
        scan.send_signal(signal.SIGTERM)
        assert scan.wait(60) == 143
    deadline = time.monotonic() + 30
    while Path(f"/proc/{pid}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.05)


NO_COMMAND = "expected a command after --, such as `prebake scan -- uvicorn app:app`, or `command` in prebake.toml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], NO_COMMAND),
        (["--"], NO_COMMAND),
        (["--", "no-such-command"], "cannot start no-such-command: command not found: install what "
         "brings it into this environment, or give its path"),
        (["--seconds", "0", "--", "true"], "--seconds: expected a number of seconds above 0, found 0"),
        (["--timeout", "-1", "--", "true"], "--timeout: expected a number of seconds above 0, found -1"),
        (["--diff", "--json", "--", "true"], "--diff, --print and --json exclude each other"),
        (["--ready", "/x", "--until-exit", "--", "true"], "--ready and --until-exit exclude each other"),
        (["--until-exit", "--request", "/x", "--", "true"],
         "--until-exit: a job that has ended answers no requests: leave them out"),
        (["--ready", "health", "--", "true"],
         '--ready: "health" is not a URL, a path such as "/health", "tcp" or "tcp:PORT"'),
        (["--requests", "none.txt", "--", "true"], "none.txt: cannot read these requests: No such file or directory"),
        (["--models", "bad.toml", "--", "true"],
         "bad.toml: is not TOML: Expected ']' at the end of a table declaration (at end of document)"),
        (["--models", "none/models.toml", "--", "true"],
         "none/models.toml: there is no folder none: make it, or name another file with --models"),
    ],
)  # fmt: skip
def test_wrong_use_is_refused(
    scanned: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (scanned / "bad.toml").write_text("[models")
    assert prebake(capfd, "scan", *arguments) == (2, "", f"prebake: error: {message}\n")


def test_prebake_turned_off_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREBAKE", "0")
    assert prebake(capfd, "scan", "--", "true") == (
        2, "", "prebake: error: PREBAKE=0 turns the hooks off that see the loads: unset it\n"
    )  # fmt: skip
