"""`prebake check -- COMMAND` starts a service as `prebake run` does, and tells its timeline, loads and reads."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.baking import TESTS, job, prebake, save, tiny
from helpers.hub_server import COMMIT
from prebake.startup.readahead import parse
from prebake_build.baking.worker import run
from prebake_build.measure.processes import free_port

Check = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One baked model, `tiny`, from the hub's `acme/tiny`."""
    folder = tmp_path_factory.mktemp("checked")
    checkpoint = save(tiny("BertForMaskedLM"), folder / "checkpoint", "safetensors")
    source = {"uri": "hf:acme/tiny", "revision": f"commit:{COMMIT}", "licence": None}
    run(job(checkpoint, folder / "models" / "tiny", source=source))
    return folder / "models"


@pytest.fixture
def check(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Check:
    """Runs the command in an empty project, offline: exit code, stdout, and the lines that `prebake` wrote."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))

    def check(*arguments: object, root: Path = root) -> tuple[int, str, str]:
        code, out, err = prebake(capfd, "check", "--root", root, *arguments)
        return code, out, "".join(line + "\n" for line in err.splitlines() if line.startswith("prebake:"))

    return check


def service(*options: object) -> list[object]:
    return ["--", sys.executable, "-m", "helpers.scanned_service", free_port(), *options]


def test_the_timeline_and_the_loads_are_shown(check: Check) -> None:
    code, out, err = check("--ready", "/health", "--request", 'POST /sum {"ids": [1, 2]}', *service())
    assert (code, err) == (0, "")
    lines = [line.split() for line in out.splitlines()]
    assert next(words[:2] for words in lines if words[:1] in (["load"], ["ready"])) == ["load", "tiny"]
    assert ["first", "answer"] in [words[:2] for words in lines]
    assert [words[4:] for words in lines if words[1:4] == ["tiny", "hf:acme/tiny", "mapped"]] != []
    assert "(GET /health answered 200), first answer after " in out
    assert out.endswith("; 1 of 1 loads mapped\n")


def test_the_document_has_the_same_and_the_files_are_written(check: Check, tmp_path: Path) -> None:
    code, out, err = check(
        "--json", "--trace", "trace.json", "--html", "start.html", "--save", "start.json", "--record-reads", "reads",
        "--ready", "600", *service(),
    )  # fmt: skip
    assert (code, err) == (0, "")
    document = json.loads(out)
    assert (document["ready"], document["over_budget"], document["not_mapped"]) == ("GET /health answered 200", [], [])
    (load,) = document["loads"]
    assert (load["model"], load["outcome"], load["reason"]) == ("tiny", "mapped", None)
    (process,) = document["processes"]
    assert process["models"]["tiny"]["tier"] == "mapped"
    assert process["program"].endswith("helpers/scanned_service.py")
    assert process["marks"]["ready"] > max(span["end"] for span in process["spans"])
    start = json.loads((tmp_path / "start.json").read_text())
    assert document["start"] == {key: value for key, value in start.items() if key != "format"}
    assert start["peak_memory"] > 10_000_000
    assert {event["ph"] for event in json.loads((tmp_path / "trace.json").read_text())["traceEvents"]} == {
        "M",
        "X",
        "i",
    }
    assert "<tr><th>tiny</th><td>ready</td><td>mapped</td>" in (tmp_path / "start.html").read_text()
    read = [path for entries, _ in parse((tmp_path / "reads").read_text().splitlines()) for path, _ in entries]
    assert f"{TESTS}/helpers/scanned_service.py" in read
    assert any("/torch/" in path for path in read)
    assert not [path for path in read if "prebake-check." in path]


def test_each_worker_of_a_server_is_told(check: Check) -> None:
    command = [sys.executable, "-m", "uvicorn", "helpers.scanned_app:app", "--workers", 2, "--port", free_port()]
    code, out, _ = check("--json", "--", *command)
    document = json.loads(out)
    assert code == 0
    assert [(load["model"], load["outcome"]) for load in document["loads"]] == [("tiny", "mapped")] * 2
    assert len({load["pid"] for load in document["loads"]}) == 2


def test_a_job_is_told_at_its_end(check: Check) -> None:
    code, out, _ = check("--json", "--until-exit", *service("--job"))
    document = json.loads(out)
    assert (code, document["ready"]) == (0, "it ended with exit code 0")
    assert [load["outcome"] for load in document["loads"]] == ["mapped"]
    assert document["start"]["first_answer"] is None


def test_strict_reports_what_was_not_mapped(check: Check) -> None:
    code, out, err = check("--strict", *service("--class", "AutoModel"))
    assert (code, err) == (
        1, "prebake: tiny: was not mapped: it was baked as transformers:BertForMaskedLM, not as BertModel\n"
    )  # fmt: skip
    assert out.endswith("; 0 of 1 loads mapped\n")


def test_strict_reports_what_is_not_baked(check: Check, tmp_path: Path) -> None:
    save(tiny("BertForMaskedLM"), tmp_path / "other", "safetensors")
    code, _, err = check("--strict", *service("--model", "other"))
    assert (code, err) == (
        1,
        "prebake: path:other: is not baked (baked: tiny (hf:acme/tiny)): add it to models.toml and bake it\n",
    )
    assert check(*service("--model", "other"))[::2] == (0, "")


def test_other_versions_are_told_and_strict_fails(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("prebake.commands.check_output.version", lambda package: "0.1+local")
    monkeypatch.setattr(
        "prebake.tiers.drift.drift", lambda baked: [f"{baked.name}: baked with x 1, but 2 is installed"]
    )
    line = "prebake: version drift: tiny: baked with x 1, but 2 is installed\n"
    assert check("--until-exit", *service("--job"))[::2] == (0, line)
    code, out, err = check("--strict", "--warn-only", "--json", "--until-exit", *service("--job"))
    assert (code, err, json.loads(out)["drift"]) == (1, line, ["tiny: baked with x 1, but 2 is installed"])


def test_a_budget_is_compared(check: Check, tmp_path: Path) -> None:
    (tmp_path / "prebake.toml").write_text(
        f"command = [{sys.executable!r}, '-m', 'helpers.scanned_service', '{free_port()}']\n"
        'ready = "/health"\n[budget]\nready = 0.001\npeak_memory = "1 MB"\n'
    )
    code, _, err = check()
    first, second = err.splitlines()
    assert code == 1
    assert first.startswith("prebake: over budget: ready after ") and first.endswith(" s, allowed are 0.001 s")
    assert second.startswith("prebake: over budget: peak memory ") and second.endswith(" MB, allowed are 1 MB")
    assert check("--warn-only")[0] == 0
    assert check("--ready", "600", "--peak-memory", "100 GB")[::2] == (0, "")


DIES = """
import http.server, os
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/x": os._exit(7)
        self.send_response(200); self.end_headers()
    def log_message(self, *_): pass
http.server.HTTPServer(("127.0.0.1", 0), Handler).serve_forever()
"""
"""A service that is ready, and ends with its first request."""


def test_a_service_that_fails_passes_its_code_on(check: Check, tmp_path: Path) -> None:
    assert check(*service("--fail", 7)) == (
        7, "", "prebake: error: the service ended with exit code 7 before it was ready\n"
    )  # fmt: skip
    assert check("--", "true") == (
        1, "", "prebake: error: the service ended with exit code 0 before it was ready: a job is done when it ends: "
        "--until-exit\n"
    )  # fmt: skip
    up = ["--ready-line", "up", "--", "sh", "-c"]
    ended = "the service ended with exit code 7 after it was ready"
    assert check(*up, "echo up; sleep .3; exit 7") == (7, "", f"prebake: error: {ended}\n")
    (tmp_path / "dies.py").write_text(DIES)
    assert check("--request", "/x", "--", sys.executable, "dies.py") == (
        7, "", f"prebake: error: GET /x: gave no answer: RemoteDisconnected: Remote end closed connection without "
        f"response; {ended}\n"
    )  # fmt: skip


def test_a_service_that_is_never_ready_is_told(check: Check) -> None:
    assert check("--timeout", "0.3", "--", "sleep", "600") == (
        1, "", "prebake: error: the service was not ready within 0.3 s (it listens on no port): name what tells it "
        "with --ready, or wait longer with --timeout\n"
    )  # fmt: skip


def test_a_program_that_is_no_python_has_no_loads(check: Check, tmp_path: Path) -> None:
    (tmp_path / "up.sh").write_text("#!/bin/sh\necho up\nsleep 600\n")
    code, out, err = check("--ready-line", "up", "--", "sh", "up.sh")
    assert (code, err) == (0, "")
    assert out.startswith("no Python process of the service found Prebake: install it in the environment in which ")
    code, out, _ = check("--until-exit", "--", sys.executable, "-c", "")
    assert (code, out.splitlines()[0]) == (
        0, "no load of a model was seen: a request may make the service load one (--request)"
    )  # fmt: skip
    assert check("--ready-line", "up", "--html", "x.html", "--", "sh", "up.sh")[::2] == (
        1, "prebake: error: no process of the service imported a framework: there is no timeline to write\n"
    )  # fmt: skip
    assert check("--ready-line", "up", "--record-reads", "x", "--", "sh", "up.sh")[::2] == (
        1, "prebake: error: --record-reads x: no Python process of the service told what it read\n"
    )  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["uvicorn", "app:app"], 'unexpected "uvicorn": a command comes after --, as in `-- uvicorn app:app`'),
        (["--ready", "/up"], '--ready: expected a number of seconds, found "/up" (there is no command after --)'),
        (["--ready", "/a", "--until-exit", "--", "true"], "--ready and --until-exit exclude each other"),
        (["--timeout", "nan", "--", "true"], "--timeout: expected a number of seconds above 0, found nan"),
        (["--ready-line", "up", "--request", "/x", "--", "sh", "-c", "echo up; sleep 600"],
         "GET /x: not sent: no port of the service is known: name it with --ready URL"),
        (["--ready", "/a", "--ready", "/b", "--", "true"], '--ready: "/a" and "/b" exclude each other'),
        (["--"], "expected a command after --, such as `prebake check -- uvicorn app:app` (without --, the models "
         "alone are started)"),
        (["--", "no-such-command"], "cannot start no-such-command: command not found: install what "
         "brings it into this environment, or give its path"),
        (["--request", "POST x", "--", "true"],
         '--request: expected "METHOD PATH [@FILE | FIELD=@FILE | TEXT]", such as "POST /caption @cat.jpg", or '
         '"module:function", found "POST x"'),
    ],
)  # fmt: skip
def test_wrong_use_is_refused(check: Check, arguments: list[str], message: str) -> None:
    assert check(*arguments) == (2, "", f"prebake: error: {message}\n")


def test_prebake_turned_off_is_refused(check: Check, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREBAKE", "0")
    assert check("--", "true")[::2] == (2, "prebake: error: PREBAKE=0 turns off what is to be checked: unset it\n")
