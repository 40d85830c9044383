"""What `docker buildx bake` pushes: images with attestations, weights once, for two platforms, the same twice."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from helpers.counting_proxy import CountingProxy
from helpers.image_builds import MODELS, TINY, bake
from helpers.registries import free_port
from helpers.registries import registry as registry_at
from prebake_build.images.oci_layout import Layout

pytestmark = pytest.mark.docker

REGISTRY = os.environ.get("PREBAKE_TEST_REGISTRY", "127.0.0.1:5000")
NAME = "prebake-test-release"
INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
EPOCH = "1700000000"


@pytest.fixture(scope="module")
def registry(engine: Any) -> str:
    try:
        urllib.request.urlopen(f"http://{REGISTRY}/v2/", timeout=10).close()
    except OSError as error:
        pytest.skip(f"no registry answers at {REGISTRY}: {error}")
    return REGISTRY


def pushed(name: str, reference: str) -> Any:
    """A manifest or index as the registry has it."""
    address = f"http://{REGISTRY}/v2/{name}/manifests/{reference}"
    with urllib.request.urlopen(urllib.request.Request(address, headers={"Accept": f"{INDEX}, {MANIFEST}"})) as answer:
        return json.load(answer)


def blob(name: str, digest: str) -> Any:
    with urllib.request.urlopen(f"http://{REGISTRY}/v2/{name}/blobs/{digest}") as answer:
        return json.load(answer)


def images(name: str) -> dict[str, Any]:
    """Platform, or the kind of an attestation → manifest."""
    found = {}
    for entry in pushed(name, "latest")["manifests"]:
        kind = entry.get("annotations", {}).get("vnd.docker.reference.type")
        found[kind or "/".join((entry["platform"]["os"], entry["platform"]["architecture"]))] = pushed(
            name, entry["digest"]
        )
    return found


def weights_of(manifest: Any) -> list[tuple[str, int]]:
    return [(layer["digest"], layer["size"]) for layer in manifest["layers"][-len(MODELS) :]]


def test_a_release_after_a_change_of_code_uploads_no_weights(registry: str, context: Path, tmp_path: Path) -> None:
    changed = shutil.copytree(context, tmp_path / "context")
    module = changed / "service/image_analyzer/service.py"
    found = []
    with CountingProxy(registry) as proxy:
        image = f"{proxy.address}/{NAME}"
        for _ in range(2):
            module.write_text(f"{module.read_text()}\nCHANGED = {os.urandom(8).hex()!r}\n")
            before = proxy.sent
            build = bake(changed, "release", IMAGE=image, MODELS_FILE=TINY, READAHEAD="", SBOM="")
            assert build.code == 0, build.output
            found.append((images(NAME)["linux/amd64"], proxy.sent - before))
    (first, _), (second, uploaded) = found
    assert weights_of(first) == weights_of(second)
    assert first["layers"] != second["layers"]
    assert sum(size for _, size in weights_of(second)) > 100_000_000
    assert uploaded < 5_000_000  # the code, manifests, and the provenance


def test_a_release_says_what_it_is_and_how_it_was_built(registry: str, context: Path) -> None:
    build = bake(
        context, "release", IMAGE=f"{registry}/{NAME}", MODELS_FILE=TINY, READAHEAD="", SBOM="", VERSION="1.2.3"
    )
    assert build.code == 0, build.output
    index, found = pushed(NAME, "latest"), images(NAME)
    for of in (index["annotations"], found["linux/amd64"]["annotations"]):
        assert of["org.opencontainers.image.version"] == "1.2.3"
        assert of["org.opencontainers.image.licenses"] == "Apache-2.0"
    assert {layer["mediaType"] for layer in found["linux/amd64"]["layers"]} == {
        "application/vnd.oci.image.layer.v1.tar"
    }
    (attestation,) = found["attestation-manifest"]["layers"]
    assert attestation["annotations"]["in-toto.io/predicate-type"].startswith("https://slsa.dev/provenance/")


def test_the_bill_of_materials_lists_models_and_packages_without_a_scanner_from_elsewhere(
    registry: str, context: Path
) -> None:
    image = f"{registry}/{NAME}"
    build = bake(context, "sbom-generator", IMAGE=image)
    assert build.code == 0, build.output
    build = bake(context, "release", IMAGE=image, MODELS_FILE=TINY, READAHEAD="",
                 SBOM=f"type=sbom,generator={image}-sbom-generator:latest")  # fmt: skip
    assert build.code == 0, build.output
    (statement,) = [
        blob(NAME, layer["digest"])
        for layer in images(NAME)["attestation-manifest"]["layers"]
        if layer["annotations"]["in-toto.io/predicate-type"] == "https://spdx.dev/Document"
    ]
    assert statement["predicateType"] == "https://spdx.dev/Document"
    packages = {package["name"]: package for package in statement["predicate"]["packages"]}
    assert {*MODELS, "torch", "prebake", "caption/model.safetensors"} <= set(packages)
    assert packages["caption"]["versionInfo"].startswith("sha256:")


@pytest.mark.parametrize(
    ("fault", "message"),
    [("closed", "connect: connection refused"), ("denied", "401 Unauthorized"), ("full", "blob upload invalid")],
)
def test_a_push_that_fails_ends_with_1_and_names_the_registry(
    engine: Any, context: Path, tmp_path: Path, small_disk: Callable[[Path, str], Path], fault: str, message: str
) -> None:
    storage = small_disk(tmp_path / "storage", "600k") if fault == "full" else tmp_path / "storage"
    serving = registry_at(tmp_path, storage, password=fault == "denied")
    with nullcontext(f"127.0.0.1:{free_port()}") if fault == "closed" else serving as address:
        build = bake(context, "sbom-generator", IMAGE=f"{address}/{NAME}")
    assert (build.code, f"failed to push {address}/{NAME}-sbom-generator:latest" in build.output) == (1, True)
    assert message in build.output
    assert not list(tmp_path.glob("storage/**/_manifests/tags/latest/current/link"))


def test_weights_for_two_platforms_are_the_same_blobs(registry: str, context: Path) -> None:
    name = f"{NAME}-weights"
    build = bake(
        context, "weights", "--provenance=false", "--set=weights.platform=linux/amd64,linux/arm64",
        "--set=weights.output=type=registry,compression=uncompressed,force-compression=true,oci-mediatypes=true",
        IMAGE=f"{registry}/{NAME}", MODELS_FILE=TINY,
    )  # fmt: skip
    assert build.code == 0, build.output
    found = images(name)
    assert sorted(found) == ["linux/amd64", "linux/arm64"]
    assert weights_of(found["linux/amd64"]) == weights_of(found["linux/arm64"])
    assert len(found["linux/arm64"]["layers"]) == len(MODELS)
    assert found["linux/amd64"]["config"] != found["linux/arm64"]["config"]


def test_with_a_source_date_the_weights_image_is_the_same_in_two_bakes_and_its_layers_in_any_order(
    engine: Any, context: Path, tmp_path: Path
) -> None:
    again = tmp_path / "again.hcl"
    again.write_text('target "_common" {\n  no-cache-filter = ["bake"]\n  args = { PREBAKE_CONVERTED_SIZE = "0" }\n}')
    files = ["--file=docker-bake.hcl", "--file=docker-bake.override.hcl", f"--file={again}"]
    found = []
    for number, models in enumerate([MODELS, MODELS, MODELS[::-1]]):
        output = f"type=oci,dest={tmp_path}/{number},tar=false,rewrite-timestamp=true,compression=uncompressed"
        build = bake(
            context, "weights", "--provenance=false", *files, f"--allow=fs={tmp_path}",
            f"--set=weights.output={output},force-compression=true,oci-mediatypes=true",
            MODELS_FILE=TINY, SOURCE_DATE_EPOCH=EPOCH, MODELS=",".join(models),
        )  # fmt: skip
        assert build.code == 0, build.output
        found.append(json.loads((tmp_path / str(number) / "index.json").read_text())["manifests"][0]["digest"])
    assert found[0] == found[1]
    layers = [Layout.open(tmp_path / str(number)).image().manifest.layers for number in range(3)]
    assert [layer.digest for layer in layers[0]] == [layer.digest for layer in layers[2]]


def test_without_a_network_packages_come_from_the_wheels_alone(engine: Any, context: Path, tmp_path: Path) -> None:
    wheels = tmp_path / "wheels"
    download = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(wheels), "--python-version=3.11"]
    constraints = ["--constraint", str(context / "constraints.txt"), "--only-binary=:all:", "hatchling"]
    subprocess.run([*download, *constraints], check=True)
    targets = ["runtime-wheel", "service-wheel", "converter-wheels"]
    build = bake(context, *targets, AIRGAPPED="1", WHEELS=str(wheels))
    assert build.code == 0, build.output
    (wheels / next(file.name for file in wheels.glob("pathspec-*"))).unlink()
    build = bake(context, *targets, AIRGAPPED="1", WHEELS=str(wheels))
    assert build.code == 1
    assert "pathspec" in build.output and "Downloading" not in build.output
