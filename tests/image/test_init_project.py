"""A project that knows nothing of this repository: `prebake init`, `docker buildx bake`, sealed, and asked."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.baking import save, tiny
from helpers.image_builds import PYTHON, Build, bake, remove, run_in, running
from helpers.snapshots import skip_where_there_are_none
from prebake.__main__ import main
from prebake_build.images.engine import image_layers

pytestmark = pytest.mark.docker

IMAGE = "prebake-test-project"
APP = '''
"""Fills gaps as anybody would, and tags with a network of its own that it takes from Prebake."""

import tempfile

import torch
from fastapi import FastAPI
from prebake import Models
from transformers import AutoModelForMaskedLM

model = AutoModelForMaskedLM.from_pretrained("checkpoints/bert")
tags = Models()["tagger"].model
app = FastAPI()


@app.get("/health")
def health() -> dict[str, bool]:
    return {"ready": True}


@app.get("/answer")
def answer() -> dict[str, object]:
    with torch.inference_mode():
        return {
            "class": type(model).__name__,
            "gaps": model(input_ids=torch.arange(1, 9)[None]).logits.tolist(),
            "tags": tags(torch.ones(1, 4)).tolist(),
            "temporary": tempfile.gettempdir(),
        }
'''
NETWORKS = """
from layers import linear
from torch import nn


def tagger() -> nn.Module:
    return nn.Sequential(linear(4, 3))
"""
LAYERS = """
from torch import nn


def linear(before: int, after: int) -> nn.Module:
    return nn.Linear(before, after)
"""
MODELS = """
[models.bert]
source = "path:checkpoints/bert"
class = "transformers:BertForMaskedLM"

[models.tagger]
source = "path:checkpoints/tagger"
class = "torch:networks:tagger"
"""
ASK = """
import json, urllib.request
print(urllib.request.urlopen("http://127.0.0.1:8000/answer", timeout=60).read().decode())
"""


@dataclass(frozen=True)
class Project:
    """The project's folder, and what it takes and gives."""

    folder: Path
    context: Path
    """The checkout that Prebake is installed from."""
    answer: dict[str, Any]
    """What its networks answer, loaded as usual in this process."""

    def bake(self, target: str = "image") -> Build:
        """Build its image again."""
        return bake(self.folder, target, f"--allow=fs.read={self.context}", PREBAKE=str(self.context))


@pytest.fixture(scope="module")
def project(engine: Any, context: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    import torch

    folder = tmp_path_factory.mktemp("work") / IMAGE
    bert = tiny("BertForMaskedLM")
    save(bert, folder / "checkpoints" / "bert", "safetensors")
    (folder / "checkpoints" / "tagger").mkdir()
    torch.manual_seed(3)
    tagger = torch.nn.Sequential(torch.nn.Linear(4, 3))
    torch.save(tagger.state_dict(), folder / "checkpoints" / "tagger" / "w.pth")
    with torch.inference_mode():
        gaps, tags = bert(input_ids=torch.arange(1, 9)[None]).logits, tagger(torch.ones(1, 4))
    expected = {"class": "BertForMaskedLM", "gaps": gaps.tolist(), "tags": tags.tolist(), "temporary": "/usr/tmp"}
    for name, text in {"app.py": APP, "networks.py": NETWORKS, "layers.py": LAYERS, "models.toml": MODELS}.items():
        (folder / name).write_text(text)
    (folder / "requirements.txt").write_text("fastapi\ntorch\ntransformers\nuvicorn\n")
    shutil.copyfile(ROOT / "constraints.txt", folder / "constraints.txt")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        words = ["init", "--python", "3.11", "--ready", "/health", "--snapshot", "--", "uvicorn", "app:app"]
        assert main(words) == 0
    project = Project(folder=folder, context=context, answer=expected)
    build = project.bake()
    assert build.code == 0, build.output
    yield project
    for image in (IMAGE, f"{IMAGE}-snapshot"):
        remove(engine, image)


@pytest.fixture(scope="module")
def container(engine: Any, project: Project) -> Iterator[Any]:
    with running(engine, IMAGE, "http://127.0.0.1:8000/health") as container:
        yield container


def test_it_answers_sealed_what_its_networks_answer(project: Project, container: Any) -> None:
    code, output = container.exec_run([PYTHON, "-c", ASK])
    assert code == 0, output.decode() + container.logs().decode()
    assert json.loads(output) == project.answer


def test_a_change_of_its_code_bakes_nothing_and_changes_the_last_layer_alone(engine: Any, project: Project) -> None:
    before = [layer.digest for layer in image_layers(engine, IMAGE)]
    with (project.folder / "app.py").open("a") as app:
        app.write("\nCHANGED = True\n")
    build = project.bake()
    assert build.code == 0, build.output
    assert [step for step in build.ran if "stage fetch" in step or "stage bake" in step or "pip install" in step] == []
    after = [layer.digest for layer in image_layers(engine, IMAGE)]
    assert before[:-1] == after[:-1]
    assert before[-1] != after[-1]


def test_checkpoints_and_build_files_are_not_beside_the_code(engine: Any, project: Project) -> None:
    listed = run_in(engine, IMAGE, "find", "/app", "-printf", "%y %P %l\\n").splitlines()
    assert {"f app.py ", "f networks.py ", "f models.toml "} <= set(listed)
    assert sorted(line for line in listed if "checkpoints" in line or "ocker" in line) == [
        "d checkpoints ",
        "l checkpoints/bert /models/bert",
        "l checkpoints/tagger /models/tagger",
    ]


def test_its_snapshot_answers_sealed_what_its_networks_answer(engine: Any, project: Project) -> None:
    skip_where_there_are_none()
    build = project.bake("snapshot")
    assert build.code == 0, build.output
    with running(engine, f"{IMAGE}-snapshot", "http://127.0.0.1:8000/health") as container:
        code, output = container.exec_run([PYTHON, "-c", ASK])
        log = container.logs().decode()
        assert (code, "not used" in log, "Started server process" in log) == (0, False, False), output.decode() + log
        assert json.loads(output) == project.answer
