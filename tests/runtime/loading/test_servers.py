"""Under gunicorn and uvicorn workers share mapped weights, and each one's registry is right, preloaded or not."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

import pytest

from helpers import ROOT, server_app
from helpers.runtime_fakes import bake_module
from helpers.serving import Process, request
from prebake import load
from prebake.baked import layout
from prebake_build.measure.processes import free_port

GUNICORN = ("gunicorn", "--workers=2", "--no-control-socket", "--timeout=120", "--graceful-timeout=5")
UVICORN = ("uvicorn", "--workers=2", "--timeout-worker-healthcheck=120", "--timeout-graceful-shutdown=5",
           "--factory", "--interface=asgi3", "--lifespan=off")  # fmt: skip


class Server(Process):
    """A server with two workers on a free port of loopback. No process of it outlives the block."""

    def __init__(self, *command: str, root: Path) -> None:
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._log = tempfile.NamedTemporaryFile(suffix=".log")  # noqa: SIM115
        bind = [f"--bind=127.0.0.1:{port}"] if command[0] == "gunicorn" else ["--host=127.0.0.1", f"--port={port}"]
        own = {"PYTHONPATH": str(ROOT / "tests"), layout.ENV_ROOT: str(root), "HF_HUB_OFFLINE": "1",
               server_app.RELEASE: str(root / "release")}  # fmt: skip
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command, *bind], stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log,
            env=os.environ | own, start_new_session=True,
        )  # fmt: skip

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self.process.wait(30)
        with suppress(ProcessLookupError):  # its session: workers that it left behind
            os.killpg(self.process.pid, signal.SIGKILL)
        super().__exit__(kind, error, trace)

    def until_up(self) -> None:
        deadline = time.monotonic() + 120
        while True:
            try:
                self.ask("/status")
            except OSError:
                assert self.process.poll() is None and time.monotonic() < deadline, self.log
                time.sleep(0.02)
            else:
                return

    def ask(self, path: str) -> Any:
        status, _, content = request(self.url, path)
        assert status == 200, self.log
        return json.loads(content)

    def of_both(self, path: str) -> list[Any]:
        """Ask, several at a time, until each worker has answered; its last answer."""
        found: dict[int, Any] = {}
        deadline = time.monotonic() + 120
        with ThreadPoolExecutor(4) as pool:
            while len(found) < 2:
                assert time.monotonic() < deadline, (found, self.log)
                for answer in pool.map(self.ask, [path] * 4):
                    found[answer["pid"]] = answer
        assert len(found) == 2, found  # a third one: a worker died and was replaced
        return list(found.values())


@pytest.fixture
def root(real_models: Path, tmp_path: Path) -> Path:
    """`sentences`, real weights that no other process maps, on the disk so that their pages are clean; and `held`."""
    root = shutil.copytree(real_models, tmp_path / "models")
    with (root / "sentences" / layout.WEIGHTS).open("rb") as file:
        os.fsync(file.fileno())
    bake_module(root, "held", "helpers.server_app:held")
    return root


def mapping(pid: int, file: Path) -> Counter[str]:
    """What the process has of the mapped file, in kB (man 5 proc_pid_smaps)."""
    kilobytes, inside = Counter[str](), False
    for line in Path(f"/proc/{pid}/smaps").read_text(encoding="utf-8").splitlines():
        words = line.split()
        if not words[0].endswith(":"):
            inside = words[-1] == str(file)
        elif inside and words[-1] == "kB":
            kilobytes[words[0].removesuffix(":")] += int(words[1])
    return kilobytes


def check_shared(pids: list[int], file: Path) -> None:
    """Each process has the whole file in memory, and nothing of it for itself."""
    size = file.stat().st_size / 1024
    for pid in pids:
        found = mapping(pid, file)
        kept = {name: found[name] for name in ("Shared_Clean", "Shared_Dirty", "Private_Clean", "Private_Dirty", "Pss")}
        print(f"{pid}: {kept} of {size:.0f} kB")
        assert found["Anonymous"] == found["Private_Dirty"] == 0, found  # no page was copied
        assert found["Shared_Clean"] + found["Shared_Dirty"] > 0.95 * size, found  # dirty: tmpfs calls all pages so
        assert found["Private_Clean"] < 0.05 * size, found


def check_answers(answers: list[Any], root: Path) -> None:
    """The workers' answers are those of the ordinary load."""
    expected = server_app.answer(load(root / "sentences", ["ordinary"]))
    for answer in answers:
        assert {name: answer[name] for name in expected} == expected


def test_workers_forked_from_a_gunicorn_that_preloaded_share_what_it_loaded_and_load_the_rest(root: Path) -> None:
    with Server(*GUNICORN, "--preload", "helpers.server_app:preloaded()", root=root) as server:
        server.until_up()
        before = server.of_both("/status")
        (root / "release").touch()
        after = server.of_both("/both")
        check_shared([answer["pid"] for answer in after], root / "sentences" / layout.WEIGHTS)
    assert {answer["pid"] for answer in before} == {answer["pid"] for answer in after}
    for answer in [*before, *after]:
        assert answer["loaded by"] == server.process.pid != answer["pid"]
    for answer in before:
        assert answer["states"] == {"held": ["idle", None], "sentences": ["ready", "mapped"]}
        assert answer["loads"] == []
    for answer in after:
        assert answer["states"] == {"held": ["ready", "mapped"], "sentences": ["ready", "mapped"]}
        assert answer["loads"] == ["held"]  # the parent's load of it stayed with the parent
    check_answers(after, root)


@pytest.mark.parametrize(
    "command",
    [(*GUNICORN, "--threads=64", "helpers.server_app:wsgi()"), (*UVICORN, "helpers.server_app:asgi")],
    ids=["gunicorn", "uvicorn"],
)
def test_each_worker_loads_once_for_all_its_requests_answers_meanwhile_and_shares_the_file(
    root: Path, command: tuple[str, ...]
) -> None:
    with Server(*command, root=root) as server, ThreadPoolExecutor(64) as pool:
        server.until_up()
        try:
            waiting: list[Any] = []
            meanwhile: list[Any] = [{"waiting": 0}]
            while any(answer["waiting"] < 2 or answer["states"]["held"] == ["idle", None] for answer in meanwhile):
                assert len(waiting) < 48, server.log  # two requests wait in either worker, long before
                waiting += [pool.submit(server.ask, "/both") for _ in range(4)]
                meanwhile = server.of_both("/status")
        finally:
            (root / "release").touch()
        answers = [future.result(120) for future in waiting]
        after = server.of_both("/answer")
        check_shared([answer["pid"] for answer in after], root / "sentences" / layout.WEIGHTS)
    for answer in meanwhile:  # given while the load was under way
        assert (answer["states"]["held"], answer["loads"]) == (["loading", None], [])
    for answer in [*answers, *after]:
        assert answer["states"] == {"held": ["ready", "mapped"], "sentences": ["ready", "mapped"]}
        assert answer["loads"] == ["held", "sentences"]
    assert {answer["pid"] for answer in answers} == {answer["pid"] for answer in after}
    check_answers([*answers, *after], root)
