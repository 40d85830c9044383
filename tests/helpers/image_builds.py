"""Image builds for tests: a copy of the build context, `docker buildx bake` in it, and what its steps did."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from docker.errors import ImageNotFound

from helpers import ROOT

CONTEXT = ("Dockerfile", "workspace.Dockerfile", "docker-bake.hcl", "docker-bake.override.hcl", ".dockerignore",
           "LICENSE", "constraints.txt", "requirements.txt", "tests/helpers/models.tiny.toml",
           "models.dummy.toml", "models.dummy.lock", "runtime", "build", "service")  # fmt: skip
PYTHON = "/opt/prebake/bin/python"
PROBE = [PYTHON, "-SEB", "/opt/prebake/probe.py"]
TINY = "tests/helpers/models.tiny.toml"
NAME = "prebake-test"
"""The image that tests build once."""
MODELS = ("caption", "ocr", "florence")
TOKEN = "hf_0123456789-this-is-in-no-layer"

_ASK = """
import io, json, os, sys, urllib.request
from PIL import Image
from image_analyzer.example import example
picture = example() if sys.argv[2] == "example" else Image.frombytes("RGB", (900, 900), os.urandom(900 * 900 * 3))
body = io.BytesIO()
picture.save(body, "PNG")
with urllib.request.urlopen("http://127.0.0.1:8000" + sys.argv[1], data=body.getvalue(), timeout=120) as answer:
    print(answer.read().decode())
"""


@dataclass(frozen=True)
class Step:
    """One step of a build, as BuildKit names it: `[stage 1/2] RUN …`."""

    name: str
    cached: bool


@dataclass(frozen=True)
class Build:
    """What `docker buildx bake` did."""

    code: int
    output: str
    """What steps and bake itself wrote."""
    steps: tuple[Step, ...]

    @property
    def ran(self) -> list[str]:
        """Instructions that ran; taking the base image and reading contexts are none."""
        return sorted(step.name for step in self.steps if not step.cached and _is_instruction(step.name))


def missing() -> str | None:
    """Why no image can be built here, or None."""
    for command in (["docker", "info"], ["docker", "buildx", "version"]):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        except (OSError, subprocess.TimeoutExpired) as error:
            return f"{' '.join(command)}: {error}"
        if done.returncode:
            return f"{' '.join(command)}: {done.stderr.strip()}"
    return None


def copy_context(folder: Path) -> Path:
    """A copy of what a build sees of this repository, to be changed at will."""
    for name in CONTEXT:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, target)
    return folder


def bake(context: Path, *arguments: str, **variables: str) -> Build:
    """Run `docker buildx bake` in a context; variables are those of docker-bake.hcl, and HF_TOKEN."""
    environment = {**os.environ, **wheels(), **variables}
    command = ["docker", "buildx", "bake", "--progress=rawjson", *arguments]
    if environment.get("WHEELS"):
        command.append(f"--allow=fs.read={environment['WHEELS']}")
    done = subprocess.run(command, cwd=context, env=environment, capture_output=True, text=True)
    return _read(done.returncode, done.stdout + done.stderr)


def build_file(context: Path, dockerfile: str) -> Build:
    """Build the last stage of a Dockerfile, given as text, and keep nothing of it."""
    command = ["docker", "buildx", "build", "--progress=rawjson", "--output=type=cacheonly", "--file=-", str(context)]
    done = subprocess.run(command, input=dockerfile, capture_output=True, text=True)
    return _read(done.returncode, done.stdout + done.stderr)


def _read(code: int, output: str) -> Build:
    vertexes: dict[str, dict[str, Any]] = {}
    words = []
    for line in output.splitlines(keepends=True):
        status = json.loads(line) if line.startswith('{"') or line == "{}\n" else None
        if status is None:
            words.append(line)
            continue
        for vertex in status.get("vertexes", ()):
            vertexes.setdefault(vertex["digest"], {}).update(vertex)
        words += [b64decode(log["data"]).decode("utf-8", "replace") for log in status.get("logs", ())]
    done = [vertex for vertex in vertexes.values() if vertex.get("completed")]
    steps = tuple(Step(name=vertex["name"], cached=bool(vertex.get("cached"))) for vertex in done)
    return Build(code=code, output="".join(words), steps=steps)


def wheels() -> dict[str, str]:
    """Where this machine has wheels that no index serves, those are used, and no index beside pip's own."""
    found = os.environ.get("PIP_FIND_LINKS", "")
    if not found:
        command = [sys.executable, "-m", "pip", "config", "get", "global.find-links"]
        found = subprocess.run(command, capture_output=True, text=True).stdout.strip()
    return {"WHEELS": found, "TORCH_INDEX": ""} if found and Path(found).is_dir() else {}


def _is_instruction(name: str) -> bool:
    stage, _, instruction = name.partition("] ")
    return bool(instruction) and not stage.startswith("[internal") and instruction.split()[0] in (
        "RUN", "COPY", "ADD", "WORKDIR", "LINK"
    )  # fmt: skip


def remove(engine: Any, image: str) -> None:
    """The image goes, where there is one."""
    with suppress(ImageNotFound):
        engine.images.remove(image, force=True)


def prune() -> None:
    """Where the engine is there for the tests alone, remove what builds left: the disk has room for a few of them."""
    if os.environ.get("PREBAKE_TEST_PRUNE"):
        subprocess.run(["docker", "buildx", "prune", "--all", "--force"], capture_output=True)


@contextmanager
def running(client: Any, image: str, url: str = "http://127.0.0.1:8000", **options: Any) -> Iterator[Any]:
    """A container of the image with no network, nothing writable and no rights; ready when this yields.

    `url` is what the probe asks, from inside.
    """
    hardened = {"network_mode": "none", "read_only": True, "user": "12345", "cap_drop": ["ALL"]}
    container = client.containers.run(image, detach=True, **(hardened | options))
    try:
        wait_ready(container, url)
        yield container
    finally:
        container.remove(force=True)


def wait_ready(container: Any, url: str = "http://127.0.0.1:8000", seconds: float = 180) -> None:
    """Until the probe in the container says yes. Fails with the log where the container ends or time is up."""
    end = time.monotonic() + seconds
    while True:
        container.reload()
        log = container.logs().decode()
        assert container.status == "running", log
        if container.exec_run([*PROBE, "ready", "--url", url]).exit_code == 0:
            return
        assert time.monotonic() < end, f"not ready after {seconds} s:\n{log}"
        time.sleep(0.2)


def ask(container: Any, path: str, picture: str = "example") -> Any:
    """Post a picture from inside the container; the answer. `picture`: example, or large (2.4 MB of noise)."""
    code, output = container.exec_run([PYTHON, "-W", "ignore", "-c", _ASK, path, picture])
    assert code == 0, output.decode() + container.logs().decode()
    return json.loads(output)


def run_in(client: Any, image: str, *command: str) -> str:
    """What a command prints in a fresh container, as root, with the entry point set aside."""
    output: bytes = client.containers.run(image, list(command[1:]), entrypoint=command[0], user="0", remove=True)
    return output.decode()
