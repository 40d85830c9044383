"""The image: built by `docker buildx bake`, run without network, root, rights or a place to write."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import tarfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hub_server import COMMIT, REPO, HubServer
from image_builds import PYTHON, TINY, Build, ask, bake, copy_context, missing, run_in, running, wait_ready
from prebake_build import dummies
from prebake_build.image import LABEL, ContainerLauncher, Layer, image_layers, open_engine

pytestmark = pytest.mark.docker

NAME = "prebake-test"
MODELS = ("caption", "ocr", "florence")


@pytest.fixture(scope="module")
def engine() -> Iterator[Any]:
    if reason := missing():
        if os.environ.get("PREBAKE_REQUIRE_DOCKER"):  # CI started an engine: a skip would hide that it is gone
            pytest.fail(reason)
        pytest.skip(reason)
    client = open_engine()
    yield client
    client.close()


@pytest.fixture(scope="module")
def context(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_context(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="module")
def built(engine: Any, context: Path) -> Iterator[Build]:
    """The image, the baseline and the weights of the tiny models."""
    build = bake(context, "image", "baseline", "weights", IMAGE=NAME, MODELS_FILE=TINY, HF_TOKEN=TOKEN)
    assert build.code == 0, build.output
    yield build
    for image in (NAME, f"{NAME}-baseline", f"{NAME}-weights", f"{NAME}-changed"):
        remove(engine, image)


@pytest.fixture(scope="module")
def container(engine: Any, built: Build) -> Iterator[Any]:
    with running(engine, NAME) as container:
        yield container


TOKEN = "hf_0123456789-this-is-in-no-layer"


def remove(engine: Any, image: str) -> None:
    if engine.images.list(name=image):
        engine.images.remove(image, force=True)


def weights_of(layers: tuple[Layer, ...]) -> list[str]:
    return [layer.digest for layer in layers[-len(MODELS) :]]


def baked(build: Build) -> list[str]:
    return [step for step in build.ran if "prebake_build.stage bake" in step]


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


# --- its layers -------------------------------------------------------------------------------------------------


def test_each_model_is_one_layer_and_the_same_in_the_weights_image(engine: Any, built: Build) -> None:
    image, weights = image_layers(engine, NAME), image_layers(engine, f"{NAME}-weights")
    assert len(weights) == len(MODELS)
    assert weights_of(image) == weights_of(weights)


def test_a_second_bake_runs_no_step(built: Build, context: Path) -> None:
    build = bake(context, "image", "baseline", "weights", IMAGE=NAME, MODELS_FILE=TINY)
    assert (build.code, build.ran) == (0, [])


def test_a_changed_line_in_the_service_bakes_nothing_and_changes_no_weights_layer(
    engine: Any, built: Build, context: Path, tmp_path: Path
) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    for module in ("service", "analyzer", "commands", "metrics", "models"):
        with (changed / f"runtime/prebake/{module}.py").open("a") as file:
            file.write("\nCHANGED = True\n")
    build = bake(changed, "image", IMAGE=f"{NAME}-changed", MODELS_FILE=TINY)
    assert (build.code, baked(build)) == (0, [])
    before, after = image_layers(engine, NAME), image_layers(engine, f"{NAME}-changed")
    assert weights_of(before) == weights_of(after)
    code = [number for number, (old, new) in enumerate(zip(before, after, strict=True)) if old.digest != new.digest]
    assert sum(after[number].size for number in code) < 2_000_000


def test_another_model_changed_or_added_bakes_none_of_the_others(built: Build, context: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    models = (changed / TINY).read_text().replace("retries = 3", "retries = 4")
    (changed / TINY).write_text(models + '\n[models.extra]\nsource = "dummy:blip-base?size=tiny&seed=7"\n')
    build = bake(changed, "weights-caption", "weights-ocr", MODELS_FILE=TINY)
    assert (build.code, baked(build)) == (0, [])


def test_baking_again_gives_the_same_layers(engine: Any, built: Build, context: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.hcl"
    again.write_text('target "_common" { no-cache-filter = ["bake", "runtime"] }')
    files = ["--file=docker-bake.hcl", f"--file={again}", f"--allow=fs.read={tmp_path}"]
    build = bake(context, "image", *files, IMAGE=f"{NAME}-changed", MODELS=MODELS[0], MODELS_FILE=TINY)
    assert (build.code, len(baked(build))) == (0, 1)
    again_made = [layer.digest for layer in image_layers(engine, f"{NAME}-changed")]
    assert again_made == [layer.digest for layer in image_layers(engine, NAME)[: len(again_made)]]


def test_weights_are_readable_by_everyone_owned_by_root_and_carry_no_time(engine: Any, built: Build) -> None:
    lines = run_in(engine, NAME, "find", "/models", "-printf", "%y %m %U:%G %T@ %p\n").splitlines()
    assert {line.rpartition(" ")[0] for line in lines} == {"d 755 0:0 0.0000000000", "f 644 0:0 0.0000000000"}
    assert len(lines) > 12


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
    assert {"HF_HUB_OFFLINE=1", "PREBAKE_ROOT=/models", "OMP_WAIT_POLICY=passive"} <= set(config["Env"])
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


# --- the index of builds ----------------------------------------------------------------------------------------


def test_the_lint_finds_nothing(context: Path) -> None:
    build = bake(context, "check")
    assert build.code == 0, build.output
    assert "Check complete, no warnings found." in build.output


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("MODELS", "caption,,ocr", "MODELS: expected names of models with commas between them, such as \"caption,ocr\" "
                                   "(lower case, digits, '.', '_', '-')."),
        ("MODELS", "caption,caption", "MODELS: a model is named twice."),
        ("MODELS_FILE", "../models.toml", "MODELS_FILE: expected a path below this folder that ends in .toml, such as "
                                          '"models.dummy.toml".'),
        ("TORCH_INDEX", "cpu", "TORCH_INDEX: expected an address that begins with http:// or https://, or nothing."),
        ("TAG", "prebake:1", "TAG: expected letters, digits, '_', '.' and '-', at most 128 (no image name: that is "
                             "IMAGE)."),
        ("IMAGE", "Prebake", "IMAGE: expected an image's name without a tag, such as "
                             '"registry.example:5000/prebake".'),
        ("WHEELS", "https://index", "WHEELS: expected a folder, its path beginning with / or ./, or nothing."),
        ("REVISION", "main", "REVISION: expected a commit's hexadecimal hash, or nothing."),
        ("COMPRESSION", "none", "COMPRESSION: expected uncompressed, zstd, gzip or estargz."),
    ],
)  # fmt: skip
def test_a_wrong_variable_is_refused_with_what_was_expected(
    context: Path, variable: str, value: str, message: str
) -> None:
    build = bake(context, "--print", **{variable: value})
    assert build.code != 0
    assert message in build.output


def test_every_variable_and_target_is_described(context: Path) -> None:
    for what in ("variables", "targets"):
        lines = bake(context, f"--list={what}").output.splitlines()
        rows = [re.split(r"\t+", line) for line in lines if "\t" in line][1:]
        assert len(rows) > 5
        assert [row[0] for row in rows if not row[-1].strip() or len(row) < 2] == []


@pytest.mark.full
def test_the_full_size_dummies_make_an_image_that_captions(engine: Any, context: Path) -> None:
    image = f"{NAME}-full"
    build = bake(context, "image", IMAGE=image, MODELS_FILE="models.dummy.toml")
    try:
        assert build.code == 0, build.output
        assert sum(layer.size for layer in image_layers(engine, image)[-len(MODELS) :]) > 1_500_000_000
        with running(engine, image) as container:
            assert ask(container, "/caption")["caption"]
    finally:
        remove(engine, image)
