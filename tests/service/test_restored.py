"""`prebake serve`, restored from a snapshot: what a started one answers, to the byte, and how it ends.

`test_service_process`, `test_metrics`, `test_page` and `test_naive` ask a restored service too (the fixture `running`).
What is about the time before the models are loaded (`--lazy`, a model that fails, early questions) does not apply: a
snapshot has them loaded, and `--lazy` refuses it.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest

from helpers.serving import Process, ask, picture, request
from helpers.snapshots import restoring

PATHS = ("/caption", "/ocr", "/analyze", *(f"/florence?task={quote(task)}" for task in ("<OD>", "<OCR>", "<CAPTION>")))
PICTURE = picture(size=(300, 200))


@pytest.fixture(autouse=True)
def _as_at_the_dump(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PREBAKE_ALLOW", "PREBAKE_CACHE"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def restorer(native: Path, tiny_models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    with restoring(native, tmp_path_factory.mktemp("snapshot"), "serve", "--root", str(tiny_models)) as words:
        yield words


@pytest.fixture(scope="module")
def restored(restorer: list[str], tiny_models: Path) -> Iterator[Process]:
    with Process("serve", "--root", tiny_models, prefix=restorer) as process:
        process.until_ready()
        yield process


def how(process: Process) -> tuple[str, str | None]:
    process.until_ready()
    told = ask(process.url, "/startup")[1]["snapshot"]
    return told["tier"], told["reason"]


def test_its_answers_are_bytes_of_a_started_service(restored: Process, tiny_models: Path) -> None:
    assert how(restored) == ("snapshot", None)
    with Process("serve", "--root", tiny_models) as started:
        started.until_ready()
        for path in PATHS:
            expected, given = (request(each.url, path, PICTURE) for each in (started, restored))
            assert given[0] == expected[0] == 200
            assert given[2] == expected[2], path


def test_its_metrics_tell_its_own_start(restored: Process) -> None:
    text = ask(restored.url, "/metrics")[1]
    assert "\nprebake_ready 1.0\n" in text
    assert 'prebake_model_state{model="caption",state="ready"} 1.0' in text
    assert 'prebake_model_fallback{model="ocr"} 0.0' in text


def test_its_report_has_the_steps_of_the_restore(restored: Process) -> None:
    restored.until_ready()
    document = ask(restored.url, "/startup")[1]
    *steps, functions = [span for span in document["spans"] if span["name"].startswith("restore: ")]
    assert [step["name"].removeprefix("restore: ") for step in steps] == [
        "check", "map", "vDSO, heap", "go on", "renew"
    ]  # fmt: skip
    assert functions["name"] == "restore: functions of the service" and functions["start"] >= steps[-1]["end"]
    assert [step["start"] for step in steps[1:]] == [step["end"] for step in steps[:-1]]
    assert (steps[0]["start"], steps[-1]["end"]) == (0, pytest.approx(document["snapshot"]["seconds"], abs=1e-5))
    assert {model["tier"] for model in document["models"].values()} == {"mapped"}


def test_under_signals_it_answers_what_is_under_way_and_ends_well(restorer: list[str], tiny_models: Path) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        with Process("serve", "--root", tiny_models, prefix=restorer) as process, ThreadPoolExecutor(4) as pool:
            process.until_ready()
            answers = [pool.submit(request, process.url, "/ocr", PICTURE) for _ in range(8)]
            assert _status(answers[0]) == 200
            assert process.stop(number) == 0
            assert {_status(answer) for answer in answers} <= {200, 503, None}
            assert process.log.splitlines()[-1] == "stopped"
            assert "Traceback" not in process.log


def _status(answer: Future[tuple[int, Mapping[str, str], bytes]]) -> int | None:
    """None where the connection was closed before the question was read."""
    return None if isinstance(answer.exception(60), OSError) else answer.result()[0]


def test_arguments_that_decide_nothing_of_what_is_loaded_may_differ(restorer: list[str], tiny_models: Path) -> None:
    with Process("serve", "--root", tiny_models, "--drain", "1", "--give-memory-back", prefix=restorer) as process:
        assert how(process) == ("snapshot", None)


def test_another_root_and_lazy_loads_start_the_ordinary_way(
    restorer: list[str], tiny_models: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_models / "caption", tmp_path / "models" / "caption")
    with Process("serve", "--root", tmp_path / "models", prefix=restorer) as process:
        assert how(process) == ("ordinary", "--root is not what the snapshot was taken with")
        assert ask(process.url, "/caption", PICTURE)[0] == 200
    with Process("serve", "--root", tiny_models, "--lazy", prefix=restorer) as process:
        assert how(process) == ("ordinary", "--lazy is not what the snapshot was taken with")


def test_forks_and_loads_anew_answer_as_in_a_started_process(native: Path, tiny_models: Path, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PREBAKE_SNAPSHOT_PROGRAMS": str(native)}
    command = [sys.executable, str(program), str(tiny_models)]
    plain = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=True)
    dump = [sys.executable, "-m", "prebake", "snapshot", "--output", str(tmp_path / "snapshot"), "--", *command]
    done = subprocess.run(dump, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    restore = [str(native / "prebake-restore"), str(tmp_path / "snapshot"), *command]
    given = subprocess.run(restore, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert (given.returncode, given.stderr) == (0, "")
    assert given.stdout.splitlines() == ["restored True", *plain.stdout.splitlines()[1:]]


PROGRAM = """
import os, sys
import torch
from prebake import Models, snapshot

models = Models(sys.argv[1])
models["caption"]
print("restored", snapshot.here(), flush=True)

def answer():
    torch.set_num_threads(1)  # a child has no threads of OpenMP
    torch.manual_seed(0)
    caption = models["caption"].model
    pixels = torch.rand(1, 3, caption.config.vision_config.image_size, caption.config.vision_config.image_size)
    with torch.inference_mode():
        return caption.vision_model(pixels).last_hidden_state.sum().item()

print(answer(), flush=True)
child = os.fork()
if not child:
    print(answer(), flush=True)
    os._exit(0)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
models.unload("caption")
print(models.status()[0].state.value, answer(), models["caption"].tier, flush=True)
"""
