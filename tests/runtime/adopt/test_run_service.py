"""Whole services by `prebake run`: their code knows nothing of Prebake."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from helpers.adopted import RUN, clean, run
from prebake_build.measure.processes import free_port

APP = """
import json, os
import torch
from transformers import AutoModelForMaskedLM
model = AutoModelForMaskedLM.from_pretrained("acme/bert")
async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    with torch.no_grad():
        total = float(model(torch.tensor([[1, 2, 3]])).logits.sum())
    body = json.dumps({"pid": os.getpid(), "total": total}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": body})
"""
LOADS = """
import sys, json
from transformers import AutoModelForMaskedLM
print(type(AutoModelForMaskedLM.from_pretrained("acme/bert")).__name__)
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def environment(tinies: Path, project: Path, **changes: str) -> dict[str, str]:
    path = os.pathsep.join([str(project), os.environ.get("PYTHONPATH", "")])
    return clean(PREBAKE_ROOT=str(tinies), HOME=str(project), HF_HUB_OFFLINE="1", PYTHONPATH=path, **changes)


@contextmanager
def serving(words: list[str], env: dict[str, str], port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The service, once it answers; stopped at the end."""
    with log.open("wb") as file, subprocess.Popen(words, env=env, stdout=file, stderr=file) as process:
        try:
            deadline = time.monotonic() + 120
            while process.poll() is None and time.monotonic() < deadline:
                try:
                    get(port, "/")
                    break
                except OSError:
                    time.sleep(0.1)
            assert process.poll() is None, log.read_text()
            yield process
        finally:
            process.terminate()
            process.wait(60)


def get(where: int | str, path: str) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", where if isinstance(where, int) else 1, timeout=30)
    if isinstance(where, str):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(where)
    try:
        connection.request("GET", path)
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


@pytest.mark.parametrize("kind", ["port", "unix"])
def test_two_workers_of_uvicorn(tinies: Path, project: Path, kind: str) -> None:
    port, other = free_port(), free_port()
    where: int | str = other if kind == "port" else str(project / "report")
    address = f"127.0.0.1:{other}" if kind == "port" else f"unix:{where}"
    words = [*RUN, "--strict", "--report", address, "--", sys.executable, "-m", "uvicorn", "app:app", "--workers", "2"]
    with serving([*words, "--port", str(port)], environment(tinies, project), port, project / "log") as process:
        answers: dict[int, float] = {}
        deadline = time.monotonic() + 60
        while len(answers) < 2 and time.monotonic() < deadline:
            answer = json.loads(get(port, "/")[1])
            answers[answer["pid"]] = answer["total"]
        assert len(answers) == 2 and len(set(answers.values())) == 1
        status, body = get(where, "/startup")
        document = json.loads(body)
        assert status == 200 and document["pid"] in answers
        assert document["counts"] == [{"library": "transformers", "outcome": "mapped", "loads": 1}]
        assert document["models"]["bert"]["outcome"] == "mapped" and document["models"]["gpt2"] is None
        assert {"import torch", "load"} <= {span["name"] for span in document["spans"]}
        assert get(where, "/readyz")[0] == 200
        assert b'prebake_loads_total{library="transformers",outcome="mapped"} 1\n' in get(where, "/metrics")[1]
        assert get(where, "/other")[0] == 404
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) in (0, -signal.SIGTERM)


def test_the_workers_of_gunicorn_share_what_their_master_loaded(tinies: Path, project: Path) -> None:
    port = free_port()
    (project / "wsgi.py").write_text(
        "import os, json\nfrom transformers import AutoModelForMaskedLM\n"
        "model = AutoModelForMaskedLM.from_pretrained('acme/bert')\n"
        "def app(environ, start_response):\n"
        "    start_response('200 OK', [])\n    return [json.dumps([os.getpid(), os.getppid()]).encode()]\n"
        "import prebake\napp = prebake.middleware.Wsgi(app)\n"
    )
    words = [
        *RUN,
        "--",
        sys.executable,
        "-m",
        "gunicorn",
        "--preload",
        "-w",
        "2",
        "-b",
        f"127.0.0.1:{port}",
        "wsgi:app",
    ]
    with serving(words, environment(tinies, project), port, project / "log") as process:
        assert json.loads(get(port, "/")[1])[1] == process.pid
        document = json.loads(get(port, "/startup")[1])
        assert document["pid"] != process.pid
        assert document["models"]["bert"]["outcome"] == "mapped"


def test_the_workers_of_gunicorn_that_load_by_themselves(tinies: Path, project: Path) -> None:
    port = free_port()
    (project / "wsgi.py").write_text(
        "from transformers import AutoModelForMaskedLM\n"
        "model = AutoModelForMaskedLM.from_pretrained('acme/bert')\n"
        "def app(environ, start_response):\n    start_response('200 OK', [])\n    return [b'']\n"
    )
    report = project / "report"
    words = [*RUN, "--strict", "--report", str(report), "--", sys.executable, "-m", "gunicorn", "-w", "2", "wsgi:app"]
    with serving([*words, "-b", f"127.0.0.1:{port}"], environment(tinies, project), port, project / "log") as process:
        deadline = time.monotonic() + 60
        while len(list(project.glob("report*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.1)
        found = [json.loads(path.read_text()) for path in project.glob("report*")]
        assert len({document["pid"] for document in found} - {process.pid}) == 2
        assert [document["models"]["bert"]["outcome"] for document in found] == ["mapped", "mapped"]


def test_the_processes_of_torchrun(tinies: Path, project: Path) -> None:
    (project / "main.py").write_text(LOADS)
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-port", str(free_port())]
    done = subprocess.run(
        [*RUN, "--strict", "--report", str(project / "report"), "--", *words, "main.py"],
        env=environment(tinies, project), cwd=project, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["BertForMaskedLM"] * 2
    reports = [json.loads(path.read_text()) for path in sorted(project.glob("report*"))]
    counted = [document["counts"] for document in reports]
    assert counted.count([{"library": "transformers", "outcome": "mapped", "loads": 1}]) == 2


def test_each_process_writes_a_file_of_its_own(tinies: Path, project: Path) -> None:
    (project / "main.py").write_text(
        "import subprocess, sys, os\n"
        "from transformers import AutoModelForMaskedLM\n"
        "AutoModelForMaskedLM.from_pretrained('acme/bert')\n"
        "if len(sys.argv) == 1: print(os.getpid(), subprocess.run([sys.executable, sys.argv[0], 'x']).returncode)\n"
    )
    env = environment(tinies, project)
    done = subprocess.run(
        [*RUN, "--report", str(project / "report"), "--", sys.executable, str(project / "main.py")],
        env=env, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    pid, code = map(int, done.stdout.split())
    first, other = sorted(project.glob("report*"))
    assert (code, first.name) == (0, "report")
    documents: list[Any] = [json.loads(path.read_text()) for path in (first, other)]
    assert documents[0]["pid"] == pid
    assert other.name == f"report.{documents[1]['pid']}"
    assert [document["models"]["bert"]["outcome"] for document in documents] == ["mapped", "mapped"]


def test_strict_refuses_in_a_process(tinies: Path, project: Path) -> None:
    env = {name: value for name, value in environment(tinies, project).items() if name != "HF_HUB_OFFLINE"}
    code = LOADS.replace("acme/bert", str(tinies.parent / "checkpoints" / "bert"))
    done = subprocess.run([*RUN, "--strict", "--", sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.splitlines()[-1] == (
        f"prebake.errors.ConfigError: path:{tinies.parent}/checkpoints/bert: is not baked, and PREBAKE_STRICT=1 "
        "refuses it (baked: bert (hf:acme/bert), gpt2 (hf:acme/gpt2)): add it to models.toml and bake it"
    )


def test_off_leaves_the_library_alone(tinies: Path, project: Path) -> None:
    code = "import transformers, sys; print(any(name.startswith('prebake') for name in sys.modules))"
    env = {"PREBAKE": "0", "PREBAKE_ROOT": str(tinies), "HOME": str(project)}
    assert run(sys.executable, "-c", code, **env).stdout == "False\n"
