"""The images of the examples, as their adopters make them: `prebake scan`, `init`, `lock`, `docker buildx bake`.

No line is written by hand. Sealed, with mapped models, an image answers what it answers with `PREBAKE=0`: the same
packages and code, and the ordinary load from the hub's cache that the scan has filled.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.cpu_wheels import write_torchaudio
from helpers.example_environment import environment, variables
from helpers.example_hub import ExampleHub, write_repositories
from helpers.example_services import EMBEDDINGS, PICTURES, TRANSCRIPTS, Service, write_sounds
from helpers.image_builds import PYTHON, Build, bake, prune, remove, running, wheels

pytestmark = pytest.mark.docker

HEALTH = "http://127.0.0.1:8000/health"
ASK = """
import sys, urllib.request
path, body = sys.argv[1:]
request = urllib.request.Request("http://127.0.0.1:8000" + path, body.encode(), {"Content-Type": "application/json"})
sys.stdout.buffer.write(urllib.request.urlopen(request, timeout=100).read())
"""


class Adopter:
    """Someone with an environment in which an example runs, a hub and an empty folder for each project."""

    def __init__(self, folder: Path, hub: ExampleHub, context: Path) -> None:
        self.hf, self._folder, self._context = folder / "hf", folder, context
        self.hf.mkdir()
        self._prebake = environment(folder / "environment", prebake=True).with_name("prebake")
        path = f"{self._prebake.parent}:{os.environ['PATH']}"
        self._variables = variables(
            PATH=path, HF_ENDPOINT=hub.url, HF_HOME=str(self.hf), PREBAKE_CACHE=str(folder / "cache")
        )

    def image(self, example: Path, scanned: list[str], started: list[str]) -> str:
        """Make the example's image; its name. `scanned` are options and command of the scan."""
        folder, name = self._folder / example.name, f"prebake-test-{example.name}"
        self.prepare(example, folder, scanned, ["--", *started])
        build = self.bake(folder, IMAGE=name)
        assert build.code == 0, build.output
        return name

    def prepare(self, example: Path, folder: Path, scanned: list[str], options: list[str]) -> None:
        """Copy the example without its Dockerfile, and have the commands write what belongs to it."""
        shutil.copytree(example, folder, ignore=shutil.ignore_patterns("Dockerfile", "__pycache__"))
        before = {path.name: path.read_bytes() for path in folder.iterdir()}
        for arguments in (["scan", *scanned], ["init", "--python", "3.11", *options], ["lock"]):
            done = subprocess.run(
                [self._prebake, *arguments],
                cwd=folder,
                env=self._variables,
                capture_output=True,
                text=True,
                timeout=200,
            )
            assert done.returncode == 0, done.stdout + done.stderr
        assert {name: (folder / name).read_bytes() for name in before} == before
        # the hub of the tests is on this machine's loopback interface: RUN steps share it, unless they have no network
        with (folder / "docker-bake.override.hcl").open("a") as override:
            override.write('target "_common" { network = "host" }\n')

    def bake(self, folder: Path, **values: str) -> Build:
        """Build what `docker buildx bake` builds by default."""
        return bake(
            folder, f"--allow=fs.read={self._context}", "--allow=network.host", "--set=*.entitlements=network.host",
            PREBAKE=str(self._context), HF_ENDPOINT=self._variables["HF_ENDPOINT"], **self._wheels(folder), **values,
        )  # fmt: skip

    def snapshot(self, example: Path, started: list[str]) -> tuple[str, Path]:
        """Make the example's image with a snapshot; its name and the project's folder."""
        folder, name = self._folder / f"{example.name}-snapshot", f"prebake-test-{example.name}"
        self.prepare(example, folder, ["--", *started], ["--ready", "/health", "--snapshot", "--", *started])
        build = self.bake(folder, IMAGE=name, SNAPSHOT="1")
        assert build.code == 0, build.output
        assert " MB in memory.img (" in build.output
        assert "snapshot: reads ahead " in build.output
        return f"{name}-snapshot", folder

    def _wheels(self, project: Path) -> dict[str, str]:
        """The variables of the wheels for the CPU that no index has; PyPI's torchaudio is for CUDA alone."""
        found = wheels()
        if "torchaudio" not in (project / "requirements.txt").read_text():
            return found
        folder = self._folder / "wheels"
        folder.mkdir()
        write_torchaudio(folder)
        for wheel in Path(found["WHEELS"]).glob("*.whl") if found else ():
            shutil.copyfile(wheel, folder / wheel.name)
        return {**found, "WHEELS": str(folder)}

    @property
    def plain(self) -> dict[str, Any]:
        """Options of a container that loads as without Prebake, from the hub's cache."""
        return {
            "environment": {"PREBAKE": "0", "HF_HOME": "/hf"}, "volumes": {str(self.hf): {"bind": "/hf", "mode": "ro"}}
        }  # fmt: skip


@pytest.fixture(scope="module")
def adopter(engine: Any, context: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Adopter]:
    folder = tmp_path_factory.mktemp("adopter")
    repositories = write_repositories(tmp_path_factory.mktemp("hub"), environment(folder / "plain"))
    with ExampleHub(repositories) as hub:
        yield Adopter(folder, hub, context)


@pytest.fixture
def room() -> None:
    """Images of other packages share nothing with what was built before."""
    prune()


@pytest.mark.parametrize(
    ("service", "started", "processes", "load"),
    [
        (PICTURES, ["python", "server.py"], 1, "DiffusionPipeline.from_pretrained"),
        (EMBEDDINGS, ["uvicorn", "app:app", "--port", "8000", "--workers", "2"], 2, "SentenceTransformer"),
    ],
    ids=["pictures", "embeddings"],
)
@pytest.mark.usefixtures("room")
def test_a_service_answers_the_same_sealed(
    engine: Any, adopter: Adopter, service: Service, started: list[str], processes: int, load: str
) -> None:
    name = f"prebake-test-{service.folder.name}"
    try:
        adopter.image(service.folder, ["--", *started], started)
        with running(engine, name, HEALTH, **adopter.plain) as container:
            expected = ask(container, service)
        strict = {"PREBAKE_STRICT": "1", "PREBAKE_REPORT": "/dev/shm/report.json"}
        with running(engine, name, HEALTH, environment=strict, security_opt=["no-new-privileges"]) as container:
            answers = [ask(container, service) for _ in range(3)]
            reports = container.exec_run(["sh", "-c", "cat /dev/shm/report.json*"]).output.decode()
    finally:
        remove(engine, name)
    assert answers == [expected] * 3
    loads = [load for report in documents(reports) for load in report["loads"]]
    assert {(found["function"], found["outcome"]) for found in loads} == {(load, "mapped")}
    assert 1 <= len(loads) <= processes  # a service answers when its first worker is ready


def test_a_snapshot_of_a_service_answers_the_same_sealed(engine: Any, adopter: Adopter) -> None:
    started = ["uvicorn", "app:app", "--host", "0.0.0.0", "--port", "8000"]
    name = f"prebake-test-{EMBEDDINGS.folder.name}-snapshot"
    try:
        _, folder = adopter.snapshot(EMBEDDINGS.folder, started)
        with running(engine, name, HEALTH, **adopter.plain) as container:
            expected = ask(container, EMBEDDINGS)
            log = container.logs().decode()
            assert "prebake: the snapshot is not used: PREBAKE is set, which it was not for the snapshot\n" in log
        report = {"PREBAKE_REPORT": "/dev/shm/report.json"}
        with running(engine, name, HEALTH, environment=report, security_opt=["no-new-privileges"]) as container:
            answers = [ask(container, EMBEDDINGS) for _ in range(3)]
            (told,) = documents(container.exec_run(["cat", "/dev/shm/report.json"]).output.decode())
        override = folder / "docker-bake.override.hcl"
        override.write_text(override.read_text().replace("--port 8000", "--port 8000 --workers 2"))
        refused = adopter.bake(folder, IMAGE=f"{name}-two", SNAPSHOT="1")
    finally:
        remove(engine, name)
    assert answers == [expected] * 3
    assert told["snapshot"]["tier"] == "snapshot"
    assert refused.code != 0
    assert (
        "prebake: error: no snapshot: uvicorn --workers 2 starts other processes, and a snapshot holds one: leave it "
        "out, and start more containers, which share the snapshot's memory\n" in refused.output
    )


@pytest.mark.usefixtures("room")
def test_the_worker_writes_the_same_sealed(engine: Any, adopter: Adopter, tmp_path: Path) -> None:
    write_sounds(tmp_path / "sounds")
    name = f"prebake-test-{TRANSCRIPTS.name}"
    scanned = ["python", "worker.py", "--sounds", str(tmp_path / "sounds"), "--results", str(tmp_path / "scanned")]
    command = ["python", "worker.py", "--sounds", "/sounds", "--results", "/results"]
    try:
        adopter.image(TRANSCRIPTS, ["--until-exit", "--", *scanned], command)
        expected = results(engine, name, tmp_path, "plain", adopter.plain)
        strict = {"PREBAKE_STRICT": "1", "PREBAKE_REPORT": "/results/report", "NUMBA_CACHE_DIR": "/results/numba"}
        found = results(engine, name, tmp_path, "baked", {"environment": strict})
        compiled = compiled_in(engine, name)
    finally:
        remove(engine, name)
    assert sorted(expected) == ["even.json", "rising.json"]
    assert found == expected
    (report,) = documents((tmp_path / "baked" / "report").read_text())
    assert [(load["model"], load["outcome"]) for load in report["loads"]] == [
        ("whisper-tiny", "mapped"),
        ("torchcrepe-full", "mapped"),
    ]

    # librosa.util.utils compiles at its import, _viterbi at its first call: numba finds both, and writes nothing
    used = {str(path.relative_to(tmp_path / "baked" / "numba")): path for path in tmp_path.glob("baked/numba/*/*")}
    assert {str(path.readlink()) for path in used.values()} == {f"/opt/prebake/numba/{name}" for name in used}
    assert sorted(used) == [name for name in compiled if name != "processor"]
    for function in ("sequence._viterbi", "utils._localmax", "guf-utils._localmax", "utils._cabs2"):
        assert any(Path(name).name.startswith(f"{function}-") for name in used), sorted(used)


def compiled_in(engine: Any, image: str) -> list[str]:
    """The files of numba in the image, relative to their folder; each is root's, from 1970 and for reading alone."""
    show = ["find", "/opt/prebake/numba", "-type", "f", "-printf", "%u %m %T@ %P\\n"]
    output = engine.containers.run(image, show[1:], entrypoint=show[0], remove=True).decode()
    lines = [line.split(" ") for line in output.splitlines()]
    assert {(*line[:2], float(line[2])) for line in lines} == {("root", "644", 0.0)}
    return sorted(line[3] for line in lines)


def ask(container: Any, service: Service) -> bytes:
    """The answer to the service's question, asked from inside the container."""
    question = json.dumps(service.question)
    code, (output, errors) = container.exec_run([PYTHON, "-c", ASK, service.path, question], demux=True)
    assert code == 0, (errors or b"").decode() + container.logs().decode()
    assert isinstance(output, bytes)
    return output


def results(engine: Any, image: str, folder: Path, name: str, options: dict[str, Any]) -> dict[str, bytes]:
    """What the worker writes in a sealed container."""
    (folder / name).mkdir()
    (folder / name).chmod(0o777)
    volumes = {
        str(folder / "sounds"): {"bind": "/sounds", "mode": "ro"}, str(folder / name): {"bind": "/results"},
        **options.get("volumes", {}),
    }  # fmt: skip
    container = engine.containers.run(
        image, detach=True, network_mode="none", read_only=True, user="12345", cap_drop=["ALL"],
        security_opt=["no-new-privileges"], environment=options["environment"], volumes=volumes,
    )  # fmt: skip
    try:
        assert container.wait(timeout=180)["StatusCode"] == 0, container.logs().decode()
    finally:
        container.remove(force=True)
    return {path.name: path.read_bytes() for path in (folder / name).glob("*.json")}


def documents(text: str) -> list[Any]:
    """The JSON documents that follow each other in a text."""
    decoder, found = json.JSONDecoder(), []
    while text := text.strip():
        document, end = decoder.raw_decode(text)
        found.append(document)
        text = text[end:]
    return found
