"""The image: run without network, root, rights or a place to write, and nothing in it that it does not need."""

from __future__ import annotations

import io
import json
import re
import shutil
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.hub_server import COMMIT, REPO, HubServer
from helpers.image_builds import MODELS, NAME, PYTHON, TOKEN, Build, ask, bake, remove, run_in, running, wait_ready
from prebake_build import dummies
from prebake_build.measure.containers import LABEL, ContainerLauncher

pytestmark = pytest.mark.docker


@pytest.fixture(scope="module")
def container(engine: Any, built: Build) -> Iterator[Any]:
    with running(engine, NAME) as container:
        yield container


# --- it runs ----------------------------------------------------------------------------------------------------


def test_it_captions_with_no_network_read_only_root_unknown_user_and_no_capability(container: Any) -> None:
    settings = container.attrs["HostConfig"]
    assert (settings["NetworkMode"], settings["ReadonlyRootfs"], settings["CapDrop"]) == ("none", True, ["ALL"])
    assert container.attrs["Config"]["User"] == "12345"
    assert len(ask(container, "/caption")["caption"].split()) > 3


def test_it_reads_text_there(container: Any) -> None:
    (found,) = ask(container, "/ocr")["text"]
    left, top = found["box"][0]
    assert found["text"] and abs(left - 60) < 30 and abs(top - 60) < 30


def test_it_answers_florence_there(container: Any) -> None:
    assert ask(container, "/florence?task=%3COD%3E")["task"] == "<OD>"


def test_a_large_picture_needs_no_writable_folder(container: Any) -> None:
    assert ask(container, "/caption", picture="large")["caption"]


def test_every_model_is_mapped(container: Any) -> None:
    code, output = container.exec_run(
        [PYTHON, "-c", "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8000/readyz').read().decode())"]
    )
    assert code == 0
    assert {name: model["tier"] for name, model in json.loads(output)["models"].items()} == dict.fromkeys(
        MODELS, "mapped"
    )


def test_the_baseline_answers_the_same_under_the_same_conditions(engine: Any, container: Any) -> None:
    with running(engine, f"{NAME}-baseline") as baseline:
        for path in ("/caption", "/ocr"):
            assert ask(baseline, path) == ask(container, path)


def test_docker_sees_it_become_healthy(container: Any) -> None:
    end = time.monotonic() + 30
    while container.attrs["State"]["Health"]["Status"] != "healthy" and time.monotonic() < end:
        time.sleep(0.5)
        container.reload()
    assert container.attrs["State"]["Health"]["Status"] == "healthy"


def test_sigterm_ends_it_at_once_with_exit_code_0(engine: Any, built: Build) -> None:
    with running(engine, NAME) as container:
        started = time.monotonic()
        container.stop(timeout=60)
        took = time.monotonic() - started
        assert container.wait()["StatusCode"] == 0
        assert took < 5


def test_a_launched_container_answers_on_its_url_and_is_gone_after_stop(engine: Any, built: Build) -> None:
    with ContainerLauncher(engine, NAME, "baked").launch() as service:
        wait_ready(service.container)
        with urllib.request.urlopen(f"{service.url}/livez") as answer:
            assert json.load(answer) == {"live": True}
        assert service.alive()
        assert [found.id for found in engine.containers.list(filters=labels())] == [service.container.id]
    assert not service.alive()
    assert "ready after" in service.log()
    assert engine.containers.list(all=True, filters=labels()) == []


def labels() -> dict[str, list[str]]:
    return {"label": [f"{name}={value}" for name, value in LABEL.items()], "ancestor": [NAME]}


# --- what is in it, and what is not -----------------------------------------------------------------------------


def test_nothing_of_the_build_half_is_in_it(engine: Any, built: Build) -> None:
    names = run_in(engine, NAME, PYTHON, "-c", (
        "from importlib.metadata import distributions as d; print(*sorted(x.name.lower() for x in d()))"
    )).split()  # fmt: skip
    assert {"prebake", "torch", "transformers", "easyocr"} <= set(names)
    assert not {"prebake-build", "docker", "hatchling", "pip", "tomli-w"} & set(names)
    assert [name for name in names if name.startswith(("nvidia", "cuda", "triton"))] == []
    for tool in ("gcc", "make", "git"):
        assert run_in(engine, NAME, "sh", "-c", f"command -v {tool} || :") == ""
    assert run_in(engine, NAME, "sh", "-c", "find /root/.cache /wheels /dist /cache 2>/dev/null || :") == ""


def test_it_runs_as_a_number_offline_with_a_probe_that_is_no_shell(engine: Any, built: Build) -> None:
    config = engine.images.get(NAME).attrs["Config"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", config["User"])
    assert {"HF_HUB_OFFLINE=1", "PREBAKE_ROOT=/models", "OMP_WAIT_POLICY=passive", "GOMP_SPINCOUNT=10000"} <= set(
        config["Env"]
    )
    assert config["Healthcheck"]["Test"] == ["CMD", PYTHON, "-SEB", "/opt/prebake/probe.py", "ready"]
    assert list(config["ExposedPorts"]) == ["8000/tcp"]


def test_labels_say_what_it_is(engine: Any, built: Build) -> None:
    assert engine.images.get(NAME).attrs["Config"]["Labels"] == {
        "dev.prebake.models": "caption,ocr,florence",
        "org.opencontainers.image.description": "Image analysis with its model weights baked in, mapped at start",
        "org.opencontainers.image.licenses": "Apache-2.0",
        "org.opencontainers.image.title": "Prebake",
        "org.opencontainers.image.version": "0.1.0",
    }


def test_the_token_is_in_no_history_and_no_layer(engine: Any, built: Build) -> None:
    for image in (NAME, f"{NAME}-baseline"):
        attributes = engine.images.get(image)
        assert TOKEN not in json.dumps([attributes.attrs, attributes.history()])
        found = run_in(
            engine, image, "sh", "-c", f"grep -rlsF {TOKEN[3:]} /models /checkpoints /etc /root /var /tmp; :"
        )
        assert found == ""


def test_a_gated_model_is_fetched_from_a_mirror_with_the_secret_and_the_token_stays_out(
    engine: Any, context: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    (changed / "models.gated.toml").write_text(f'[models.gated]\nsource = "hf:{REPO}@{COMMIT}"\n')
    # the mirror listens on this machine's loopback interface
    step = "RUN --mount=type=bind,from=selected,"
    dockerfile = (changed / "Dockerfile").read_text()
    (changed / "Dockerfile").write_text(dockerfile.replace(step, step.replace("RUN", "RUN --network=host")))
    network = ["--set=*.entitlements=network.host", "--allow=network.host"]
    variables = {"IMAGE": f"{NAME}-gated", "MODELS": "gated", "MODELS_FILE": "models.gated.toml", "HF_TOKEN": TOKEN}
    with HubServer(tiny_blip(tmp_path / "checkpoint"), gated=True, token=TOKEN) as hub:
        build = bake(changed, "weights", *network, **variables, HF_ENDPOINT=hub.url)
    image = f"{NAME}-gated-weights"
    try:
        assert build.code == 0, build.output
        assert f"Bearer {TOKEN}" in {request.authorization for request in hub.requests}
        found = contents(engine, image)
        assert "models/gated/model.safetensors" in found
        assert not any(TOKEN.encode() in data for data in found.values())
        assert TOKEN not in json.dumps(engine.images.get(image).history()) + build.output
    finally:
        remove(engine, image)


def tiny_blip(folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    dummies.write(dummies.Dummy(kind="blip-base", size="tiny", seed=0, languages=()), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def contents(engine: Any, image: str) -> dict[str, bytes]:
    """Files of an image that holds nothing to run."""
    container = engine.containers.create(image, ["none"])
    try:
        with tarfile.open(fileobj=io.BytesIO(b"".join(container.export()))) as archive:
            files = [(entry.name, archive.extractfile(entry)) for entry in archive if entry.isfile()]
            return {name: file.read() for name, file in files if file is not None}
    finally:
        container.remove()
