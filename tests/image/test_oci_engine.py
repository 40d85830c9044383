"""What `prebake bake --oci` writes, against a real engine and registry: same layers, usable as they are."""

from __future__ import annotations

import io
import json
import os
import subprocess
import tarfile
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest

from helpers.baked_folders import baked_folder
from helpers.image_builds import NAME as TINY_IMAGE
from helpers.image_builds import Build, remove
from prebake.baked.model import BakedModel, find_models
from prebake_build.baking.writer import alone_in, make_canonical, write_view
from prebake_build.images.engine import image_layers
from prebake_build.images.layers import layer_digest, shard_digests
from prebake_build.images.oci_layout import Layout
from prebake_build.images.pack import Packed, Packing, pack

pytestmark = pytest.mark.docker

NAME = "prebake-test-oci"
BASE = "python:3.11-slim-bookworm"
REGISTRY = os.environ.get("PREBAKE_TEST_REGISTRY", "127.0.0.1:5000")
IMAGE = f"{REGISTRY}/{NAME}:latest"
AWKWARD = {
    "unet/config.json": b"{}",
    "unet-x/config.json": b"{}",
    "tokenizer/" + "long" * 30 + "/" + "name" * 20: b"long",
    "exactly" + "x" * 83: b"100 letters",
    "가중치/설명.json": b"{}",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[BakedModel]:
    root = tmp_path_factory.mktemp("models")
    return [baked_folder(root, "caption", {"w": [700, 801]}, files=AWKWARD), baked_folder(root, "ocr")]


@pytest.fixture(scope="module")
def oci(models: list[BakedModel], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Packed]:
    folder = tmp_path_factory.mktemp("oci") / "weights"
    return folder, pack(models, folder, Packing(tag=IMAGE))


@pytest.fixture(scope="module")
def contexts(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("contexts")


def build(context: Path, dockerfile: str, *arguments: str) -> Layout:
    """Build it into an OCI layout beside the context."""
    (context / "Dockerfile").write_text(dockerfile)
    output = (
        f"type=oci,dest={context}-built,tar=false,compression=uncompressed,force-compression=true,oci-mediatypes=true"
    )
    done = subprocess.run(
        ["docker", "buildx", "build", f"--output={output}", "--provenance=false", *arguments, str(context)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return Layout.open(Path(f"{context}-built"))


def layers_of(layout: Layout) -> list[str]:
    return [layer.digest for layer in layout.image().manifest.layers]


def files_of(layout: Layout) -> dict[str, bytes]:
    found = {}
    for number in range(len(layout.image().manifest.layers)):
        with tarfile.open(layout.image().layer(number)) as archive:
            for entry in archive:
                if file := archive.extractfile(entry):
                    found[entry.name] = file.read()
    return found


def test_the_layers_are_those_of_a_build(
    models: list[BakedModel], oci: tuple[Path, Packed], contexts: Path, tmp_path: Path
) -> None:
    """As docker-bake.hcl does it: each model in a stage of its own, linked into the weights image."""
    context = contexts / "stages"
    for baked in models:
        place = context / baked.name / "models" / baked.name
        place.parent.mkdir(parents=True)
        subprocess.run(["cp", "-r", str(baked.folder), str(place)], check=True)
        with alone_in(place.parent):
            write_view(place.parent)
        make_canonical(context / baked.name)
    # sending the context changes the time of folders in which it makes links
    run = "cp -a /src/{name} /out && find /out -exec touch --no-dereference --date=@0 {{}} +"
    stages = [f"FROM {BASE} AS bake-{m.name}\nRUN --mount=type=bind,target=/src {run.format(name=m.name)}\n"
              f"FROM scratch AS weights-{m.name}\nCOPY --link --from=bake-{m.name} /out /" for m in models]  # fmt: skip
    links = [f"COPY --link --from=weights-{baked.name} / /" for baked in models]
    built = build(context, "\n".join([*stages, "FROM scratch", *links]), "--no-cache")
    assert layers_of(built) == [oci[1].layers[baked.name].digest for baked in models]


def test_shards_are_the_layers_of_a_build(contexts: Path, tmp_path: Path) -> None:
    """As docker-bake.hcl does it with SHARDS: the small files from /out, each shard from a tree of its own."""
    baked = baked_folder(tmp_path / "models", "large", files=AWKWARD, shards=3)
    context = contexts / "shards"
    subprocess.run(["cp", "-r", str(tmp_path), str(context)], check=True)
    with alone_in(context / "models"):
        write_view(context / "models")
    moves = [f"mkdir -p /out.{number}/models/large && mv /out/models/large/{shard} /out.{number}/models/large"
             for number, shard in enumerate(baked.shards, 1)]  # fmt: skip
    run = " && ".join(["mkdir /out && cp -a /src/models /out", *moves,
                       "chmod -R u=rwX,go=rX /out /out.* && chown -R 0:0 /out /out.*",
                       "find /out /out.* -exec touch --no-dereference --date=@0 {} +"])  # fmt: skip
    copies = [f"COPY --link --from=bake {tree} /" for tree in ("/out", "/out.1", "/out.2", "/out.3")]
    stage = f"FROM {BASE} AS bake\nRUN --mount=type=bind,target=/src {run}"
    built = build(context, "\n".join([stage, "FROM scratch", *copies]), "--no-cache")
    assert layers_of(built) == [layer_digest(baked), *shard_digests(baked)]


def test_the_layers_are_those_of_docker_bake(engine: Any, built: Build, tmp_path: Path) -> None:
    """The folders of this repository's own weights image, written again without the engine."""
    container = engine.containers.create(f"{TINY_IMAGE}-weights", ["none"])
    try:
        chunks, _ = container.get_archive("/models")
        with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
            archive.extractall(tmp_path, filter="data")
    finally:
        container.remove()
    packed = pack(find_models(tmp_path / "models"), tmp_path / "oci", Packing())
    layers = {layer.digest for layer in image_layers(engine, f"{TINY_IMAGE}-weights")}
    assert {layer.digest for layer in packed.layers.values()} == layers


def test_the_layout_is_a_build_context(oci: tuple[Path, Packed], models: list[BakedModel], contexts: Path) -> None:
    folder, packed = oci
    context = contexts / "context"
    context.mkdir()
    weights = f"--build-context=weights=oci-layout://{folder}:latest"
    copied = build(context, "FROM scratch\nCOPY --link --from=weights / /\n", weights)
    for baked in models:
        for file in baked.manifest.files:
            data = (baked.folder / file.path).read_bytes()
            assert files_of(copied)[f"models/{baked.name}/{file.path}"] == data
    below = build(context, "FROM weights\n", weights)
    assert layers_of(below) == [layer.digest for layer in packed.layers.values()]


def test_it_is_loaded_and_pushed_with_its_own_digests(engine: Any, oci: tuple[Path, Packed], contexts: Path) -> None:
    folder, packed = oci
    try:
        urllib.request.urlopen(f"http://{REGISTRY}/v2/", timeout=10).close()
    except OSError as error:
        pytest.skip(f"no registry answers at {REGISTRY}: {error}")
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w") as tar:
        tar.add(folder, ".")
    load = subprocess.run(["docker", "load"], input=archive.getvalue(), capture_output=True)
    assert load.returncode == 0, load.stderr
    try:
        pushed = engine.images.push(IMAGE)
        assert packed.digest in pushed, pushed
        with urllib.request.urlopen(
            urllib.request.Request(
                f"http://{REGISTRY}/v2/{NAME}/manifests/latest",
                headers={"Accept": "application/vnd.oci.image.index.v1+json"},
            )
        ) as answer:
            assert answer.headers["Docker-Content-Digest"] == packed.digest
            assert len(json.load(answer)["manifests"]) == 2
    finally:
        remove(engine, IMAGE)


def test_a_push_after_a_change_of_code_moves_no_weights(engine: Any, oci: tuple[Path, Packed], contexts: Path) -> None:
    folder, packed = oci
    try:
        urllib.request.urlopen(f"http://{REGISTRY}/v2/", timeout=10).close()
    except OSError as error:
        pytest.skip(f"no registry answers at {REGISTRY}: {error}")
    context, name = contexts / "code", f"{REGISTRY}/{NAME}-code:latest"
    context.mkdir()
    (context / "Dockerfile").write_text("FROM weights\nCOPY --link code /code\n")
    said = []
    try:
        for _ in range(2):
            (context / "code").write_bytes(os.urandom(16))  # the registry may have layers of earlier runs
            output = f"type=docker,name={name},compression=uncompressed,force-compression=true,oci-mediatypes=true"
            weights = f"--build-context=weights=oci-layout://{folder}:latest"
            done = subprocess.run(
                ["docker", "buildx", "build", "--provenance=false", f"--output={output}", weights, str(context)],
                capture_output=True, text=True,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
            statuses = [json.loads(line) for line in engine.images.push(name).splitlines()]
            said.append({status["id"]: status["status"] for status in statuses if "id" in status})
        ids = [layer.digest.removeprefix("sha256:")[:12] for layer in packed.layers.values()]
        assert {said[1].get(layer) for layer in ids} == {"Layer already exists"}, said
        assert "Pushed" in said[1].values(), said  # the code
    finally:
        remove(engine, name)
