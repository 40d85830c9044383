"""`prebake scan`: services as processes, with loads of transformers from a local hub, and with loads that are written
down by hand."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from helpers.baking import TESTS, prebake, save, tiny
from helpers.hub_server import COMMIT, HubServer
from prebake_build.declared.spec import read_spec
from prebake_build.measure.processes import free_port

SOURCE = f"hf:acme/tiny@{COMMIT}"
WORKER = """
import sys, time
from prebake.adopt.loads import Load, record
record(Load(library="torch", function="torch.load", uri="url:https://example.org/net.pth", class_="tensors",
            seconds=0.25))
print("loaded", flush=True)
"""
"""A worker without HTTP, whose load is recorded as a hook would."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    folder = save(tiny("BertForMaskedLM"), tmp_path_factory.mktemp("hub"), "safetensors")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def hub(files: dict[str, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with HubServer(files, branches=("main", "v1")) as server:
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        yield server


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty project in the current folder, and an empty cache."""
    (tmp_path / "project").mkdir()
    monkeypatch.chdir(tmp_path / "project")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")])))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hf" / "hub"))
    monkeypatch.setattr("prebake_build.scanning.watch.QUIET", 0.1)
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    return tmp_path / "project"


def service(*options: object) -> list[object]:
    return ["--", sys.executable, "-m", "helpers.scanned_service", free_port(), *options]


def worker(then: str = "") -> list[object]:
    return ["--", sys.executable, "-c", WORKER + then]


def ours(text: str) -> str:
    """The lines that `prebake` wrote, without those of the service."""
    return "".join(line + "\n" for line in text.splitlines() if line.startswith(("prebake:", "Wrote", "models.toml")))


# --- services ----------------------------------------------------------------------------------------------------


def test_a_service_is_started_seen_and_ended(hub: HubServer, project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", *service())
    assert (code, ours(err)) == (0, "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n")
    assert (project / "models.toml").read_text() == (
        "# The models of this service, as `prebake scan` saw it load them.\n\n"
        f'[models.tiny]\nsource = "{SOURCE}"\nclass = "transformers:BertForMaskedLM"\n'
    )
    assert [model.name for model in read_spec(project / "models.toml").models] == ["tiny"]
    header, row, *_ = out.splitlines()
    assert header.split() == ["model", "source", "class", "loads", "seconds", "share"]
    assert row.split()[:4] == ["tiny", SOURCE, "transformers:BertForMaskedLM", "1"]
    assert "The service was ready after " in out and "(GET /health answered 200)" in out


def test_a_lazy_service_loads_with_the_request(hub: HubServer, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", "--json", "--request", 'POST /sum {"ids": [1, 2]}', *service("--lazy"))
    assert (code, ours(err)) == (0, "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n")
    document = json.loads(out)
    assert (document["ready"], document["added"], document["problems"]) == ("GET /health answered 200", ["tiny"], [])
    assert document["answered"] > document["seconds"]
    assert [model["source"] for model in document["models"]] == [SOURCE]


def test_a_lazy_service_without_a_request_loads_nothing(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", *service("--lazy"))
    assert (code, out) == (1, "")
    assert ours(err) == (
        "prebake: no load of a model was seen: send a request that makes the service load one (--request), or run it "
        "longer (--seconds)\n"
    )
    assert not (project / "models.toml").exists()


@pytest.mark.parametrize("command", [["true"], [sys.executable, "-I", "-c", ""]])
def test_a_service_that_does_not_find_prebake_is_told(command: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", "--", *command)
    assert (code, out) == (1, "")
    assert ours(err) == (
        "prebake: no Python process of the service found Prebake: install it in the environment in which the command "
        "runs; processes that are started with -I, -S or -E, containers and other software are not seen\n"
    )


def test_two_revisions_of_one_id_are_two_tables(
    hub: HubServer, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = "fedcba9876543210fedcba9876543210fedcba98"

    with HubServer(hub.files, commit=other) as second:
        script = project / "two.py"
        script.write_text(
            "import os, subprocess, sys\n"
            f"for url, place in (({hub.url!r}, 'one'), ({second.url!r}, 'two')):\n"
            "    subprocess.run([sys.executable, '-m', 'helpers.scanned_service', '0', '--job'], check=True,\n"
            "                   env={**os.environ, 'HF_ENDPOINT': url, 'HF_HOME': os.environ['HF_HOME'] + place})\n"
        )
        code, _, err = prebake(capfd, "scan", "--until-exit", "--", sys.executable, script)
    assert (code, ours(err)) == (
        0,
        "Wrote models.toml with tiny, tiny-2. Next: prebake lock, then prebake init.\n"
        "prebake: hf:acme/tiny: is declared at another revision too (tiny): bakes both\n",
    )
    assert [model.source for model in read_spec(project / "models.toml").models] == [
        f"hf:acme/tiny@main@{COMMIT}", f"hf:acme/tiny@main@{other}"
    ]  # fmt: skip


def test_the_name_that_a_service_asks_for_stands_beside_the_commit(
    hub: HubServer, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = prebake(capfd, "scan", "--until-exit", *service("--job", "--revision", "v1"))
    assert (code, ours(err)) == (0, "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n")
    assert [model.source for model in read_spec(project / "models.toml").models] == [f"hf:acme/tiny@v1@{COMMIT}"]


def test_the_workers_of_a_server_load_one_model(
    hub: HubServer, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-m", "uvicorn", "helpers.scanned_app:app", "--workers", 2, "--port", free_port()]
    code, out, _ = prebake(capfd, "scan", "--json", "--", *command)
    (model,) = json.loads(out)["models"]
    assert (code, model["name"], model["loads"]) == (0, "tiny", 2)
    assert [model.name for model in read_spec(project / "models.toml").models] == ["tiny"]


def test_a_model_that_exists_only_here_is_a_path(
    files: dict[str, bytes], project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (project / "weights" / "tiny").mkdir(parents=True)
    for name, content in files.items():
        (project / "weights" / "tiny" / name).write_bytes(content)
    (project / "conf").mkdir()
    code, _, _ = prebake(capfd, "scan", "--models", "conf/models.toml", *service("--job", "--model", "weights/tiny"))
    assert code == 0
    (model,) = read_spec(project / "conf" / "models.toml").models
    assert (model.name, model.source) == ("tiny", "path:../weights/tiny")


def test_a_service_that_fails_after_its_loads_passes_its_code_on(
    hub: HubServer, project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = prebake(capfd, "scan", *service("--fail", 7))
    assert code == 7
    assert ours(err) == (
        "Wrote models.toml with tiny. Next: prebake lock, then prebake init.\n"
        "prebake: the service ended with exit code 7\n"
    )
    assert "[models.tiny]" in (project / "models.toml").read_text()


# --- workers, and what is told of them ---------------------------------------------------------------------------

TABLE = '[models.net]\nsource = "url:https://example.org/net.pth"\nclass = "tensors"\n'


def test_a_worker_without_http_runs_to_its_end(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capfd, "scan", "--until-exit", *worker())
    assert (code, TABLE in (project / "models.toml").read_text()) == (0, True)
    assert "The service ran for " in out


def test_a_worker_is_ready_when_it_says_so(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, _ = prebake(capfd, "scan", "--ready-line", "loaded", *worker("time.sleep(600)"))
    assert (code, '(its output contains "loaded")' in out) == (0, True)


def test_a_time_ends_it_whether_it_is_ready_or_not(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code, out, err = prebake(capfd, "scan", "--seconds", "0.7", *worker("time.sleep(600)"))
    assert (code, ours(err)) == (0, "Wrote models.toml with net. Next: prebake lock, then prebake init.\n")
    assert "The service ran for " in out


def test_a_service_that_is_never_ready_is_told_and_what_was_seen_is_kept(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, _, err = prebake(capfd, "scan", "--timeout", "0.7", *worker("time.sleep(600)"))
    assert code == 1
    assert ours(err) == (
        "Wrote models.toml with net. Next: prebake lock, then prebake init.\n"
        "prebake: the service was not ready within 0.7 s (it listens on no port): name what tells it with --ready, or "
        "say with --seconds how long to run it\n"
    )


def test_a_failed_request_is_told_and_what_was_seen_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    serves = "import http.server; http.server.HTTPServer(('127.0.0.1', 0), http.server.BaseHTTPRequestHandler)"
    code, _, err = prebake(capfd, "scan", "--request", "GET /x", *worker(f"{serves}.serve_forever()"))
    assert code == 1
    assert ours(err).splitlines()[-1].startswith('prebake: GET /x: was answered with 501: "<!DOCTYPE HTML')


def test_a_request_without_a_known_port_is_told(capfd: pytest.CaptureFixture[str]) -> None:
    code, _, err = prebake(capfd, "scan", "--ready-line", "loaded", "--request", "/x", *worker("time.sleep(600)"))
    assert (code, ours(err).splitlines()[-1]) == (
        1, "prebake: GET /x: not sent: no port of the service is known (--ready URL)"
    )  # fmt: skip


def test_nothing_is_written_where_that_is_asked(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "models.toml").write_text('[models.a] # mine\nsource = "path:a"\n')
    code, out, err = prebake(capfd, "scan", "--until-exit", "--diff", *worker())
    assert (code, ours(err)) == (0, "")
    assert out == (
        '--- a/models.toml\n+++ b/models.toml\n@@ -1,2 +1,6 @@\n [models.a] # mine\n source = "path:a"\n+\n+'
        + TABLE.rstrip().replace("\n", "\n+")
        + "\n"
    )
    code, out, _ = prebake(capfd, "scan", "--until-exit", "--print", *worker())
    assert (code, out) == (0, f'[models.a] # mine\nsource = "path:a"\n\n{TABLE}')
    assert (project / "models.toml").read_text() == '[models.a] # mine\nsource = "path:a"\n'


def test_a_second_scan_changes_nothing(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    prebake(capfd, "scan", "--until-exit", *worker())
    before = (project / "models.toml").read_bytes()
    code, _, err = prebake(capfd, "scan", "--until-exit", *worker())
    assert (code, ours(err)) == (0, "models.toml: nothing to add.\n")
    assert (project / "models.toml").read_bytes() == before


def test_what_cannot_be_baked_is_told_and_kept_as_a_comment(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    remote = f'record(Load(library="t", function="f", uri="{SOURCE}", class_="transformers:X", obstacle="remote code"))'
    code, _, err = prebake(capfd, "scan", "--until-exit", *worker(remote))
    assert (code, ours(err).splitlines()[1:]) == (0, [f"prebake: {SOURCE}: cannot be baked: remote code"])
    assert f"\n# Not baked: {SOURCE} (transformers:X): remote code\n" in (project / "models.toml").read_text()


def test_a_hub_that_cannot_be_reached_leaves_it_unpinned(
    project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
    unpinned = 'record(Load(library="t", function="f", uri="hf:acme/tiny", class_="transformers:X"))'
    code, _, err = prebake(capfd, "scan", "--until-exit", *worker(unpinned))
    assert code == 0
    assert "prebake: hf:acme/tiny: is not pinned: hf:acme/tiny: cannot reach the hub at http://127.0.0.1:1: " in err
    assert (
        '# Not pinned: the hub did not tell the commit. `prebake lock` will.\n[models.tiny]\nsource = "hf:acme/tiny"\n'
        in (project / "models.toml").read_text()
    )


def test_a_prepared_project_needs_no_arguments(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (project / "worker.py").write_text(WORKER)
    (project / "prebake.toml").write_text(f"command = [{sys.executable!r}, 'worker.py']\n")
    assert prebake(capfd, "scan")[0] == 0
    assert TABLE in (project / "models.toml").read_text()


def test_a_terminated_scan_ends_the_service(project: Path) -> None:
    (project / "sleeps.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(600)")
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
    ],
)  # fmt: skip
def test_wrong_use_is_refused(
    project: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    (project / "bad.toml").write_text("[models")
    assert prebake(capfd, "scan", *arguments) == (2, "", f"prebake: error: {message}\n")


def test_prebake_turned_off_is_refused(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("PREBAKE", "0")
    assert prebake(capfd, "scan", "--", "true") == (
        2, "", "prebake: error: PREBAKE=0 turns the hooks off that see the loads: unset it\n"
    )  # fmt: skip
