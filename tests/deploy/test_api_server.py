"""A real API server takes the manifests: its defaults, its validation, and the admission of their pods.

PREBAKE_TEST_APISERVER names a folder with `kube-apiserver` and `etcd`; `crds/` in it may hold KServe's
CustomResourceDefinitions (docs/distribution.md). No node runs the pods.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.api_server import Cluster, api_server
from helpers.manifests import FOLDER, LAYERS, documents, pods

OWN = ("base", "image-volume", "pre-pull")  # the layers whose kinds every API server knows
PROGRAMS = Path(os.environ.get("PREBAKE_TEST_APISERVER", "."))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    if "PREBAKE_TEST_APISERVER" not in os.environ:
        pytest.skip("PREBAKE_TEST_APISERVER is not set: a folder with kube-apiserver and etcd")
    if not shutil.which("kubectl"):
        pytest.skip("kubectl is not installed")
    with api_server(PROGRAMS.resolve(), tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def restricted(cluster: Cluster, request: pytest.FixtureRequest) -> str:
    """The name of a new namespace whose pods must be as the Pod Security Standard `restricted` wants them."""
    return cluster.namespace("".join(c if c.isalnum() else "-" for c in request.node.name.lower()).strip("-"))


@pytest.fixture
def broken(tmp_path: Path) -> Path:
    """A copy of the manifests to break."""
    return Path(shutil.copytree(FOLDER, tmp_path / "kubernetes"))


def pod(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The pod that a controller would make of a template."""
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


def add(file: Path, name: str, value: object) -> None:
    """Gives the only container of a Deployment's or DaemonSet's file a field."""
    document = yaml.safe_load(file.read_text())
    (container,) = document["spec"]["template"]["spec"]["containers"]
    container[name] = value
    file.write_text(yaml.safe_dump(document))


def assert_taken(done: subprocess.CompletedProcess[str]) -> None:
    assert done.stderr == ""  # neither an error nor a warning
    assert done.returncode == 0


@pytest.mark.parametrize("server_side", [True, False])
@pytest.mark.parametrize("layer", OWN)
def test_it_is_taken_without_a_warning(cluster: Cluster, restricted: str, layer: str, server_side: bool) -> None:
    done = cluster.apply(FOLDER / layer, restricted, server_side=server_side)
    assert_taken(done)
    assert len(done.stdout.splitlines()) == len(documents(layer))


@pytest.mark.parametrize("layer", OWN)
def test_applying_it_again_changes_nothing(cluster: Cluster, restricted: str, layer: str) -> None:
    names = [f"{document['kind']}/{document['metadata']['name']}" for document in documents(layer)]
    assert cluster.apply(FOLDER / layer, restricted).returncode == 0
    before = cluster.get(restricted, *names)
    assert cluster.apply(FOLDER / layer, restricted).returncode == 0
    assert cluster.get(restricted, *names) == before


def test_applying_it_again_leaves_the_autoscalers_replicas(cluster: Cluster, restricted: str) -> None:
    assert cluster.apply(FOLDER / "base", restricted).returncode == 0
    assert cluster.kubectl("scale", "-n", restricted, "--replicas=4", "deployment/prebake").returncode == 0
    assert cluster.apply(FOLDER / "base", restricted).returncode == 0
    (deployment,) = cluster.get(restricted, "deployment/prebake")
    assert deployment["spec"]["replicas"] == 4


def test_the_volume_of_an_image_is_stored(cluster: Cluster, restricted: str) -> None:
    """A server that does not know image volumes, or has their gate shut, drops the field."""
    assert cluster.apply(FOLDER / "image-volume", restricted).returncode == 0
    (deployment,) = cluster.get(restricted, "deployment/prebake")
    image = {"reference": "prebake-weights", "pullPolicy": "IfNotPresent"}
    assert deployment["spec"]["template"]["spec"]["volumes"] == [{"name": "weights", "image": image}]


@pytest.mark.parametrize("layer", LAYERS)
def test_the_pod_is_admitted_and_gets_no_token(cluster: Cluster, restricted: str, layer: str) -> None:
    (spec,) = pods(documents(layer))
    done = cluster.kubectl("create", "--warnings-as-errors", "-n", restricted, "-f", "-", given=pod("one", spec))
    assert_taken(done)
    (stored,) = cluster.get(restricted, "pod/one")
    assert stored["spec"].get("volumes", []) == spec.get("volumes", [])  # admission would add the token's
    assert stored["status"]["qosClass"] == "Burstable"


@pytest.fixture
def kserve(cluster: Cluster) -> None:
    definitions = (PROGRAMS / "crds").resolve()
    if not definitions.is_dir():
        pytest.skip(f"{definitions} is missing: KServe's CustomResourceDefinitions")
    done = cluster.kubectl("apply", "--server-side", "-f", str(definitions))
    assert done.returncode == 0, done.stderr
    for _ in range(120):
        if cluster.kubectl("get", "--raw", "/apis/serving.kserve.io/v1beta1").returncode == 0:
            return
        time.sleep(0.5)
    pytest.fail("the API server serves no serving.kserve.io/v1beta1")


@pytest.mark.usefixtures("kserve")
@pytest.mark.parametrize("server_side", [True, False])
def test_the_inference_service_is_taken(cluster: Cluster, restricted: str, server_side: bool) -> None:
    for _ in range(2):
        done = cluster.apply(FOLDER / "kserve", restricted, server_side=server_side)
        assert_taken(done)
    (stored,) = cluster.get(restricted, "inferenceservice/prebake")
    assert stored["metadata"]["generation"] == 1


# --- what the server refuses, so that the tests above say something ----------------------------------------------


def test_an_unknown_field_is_refused(cluster: Cluster, restricted: str, broken: Path) -> None:
    add(broken / "base" / "deployment.yaml", "readinessprobe", {})
    done = cluster.apply(broken / "base", restricted)
    assert done.returncode == 1
    assert '.spec.template.spec.containers[name="prebake"].readinessprobe: field not declared in schema' in done.stderr


@pytest.mark.usefixtures("kserve")
def test_an_unknown_field_of_the_inference_service_is_refused(cluster: Cluster, restricted: str, broken: Path) -> None:
    file = broken / "kserve" / "inferenceservice.yaml"
    file.write_text(file.read_text().replace("livenessProbe:", "livenessprobe:"))
    done = cluster.apply(broken / "kserve", restricted)
    assert done.returncode == 1
    assert ".spec.predictor.containers[0].livenessprobe: field not declared in schema" in done.stderr


def test_an_invalid_value_is_refused(cluster: Cluster, restricted: str, broken: Path) -> None:
    """The schema allows it: only the server compares fields with each other."""
    file = broken / "pre-pull" / "daemonset.yaml"
    add(file, "resources", {"requests": {"memory": "128Mi"}, "limits": {"memory": "64Mi"}})
    done = cluster.apply(broken / "pre-pull", restricted)
    assert done.returncode == 1
    assert 'requests: Invalid value: "128Mi": must be less than or equal to memory limit of 64Mi' in done.stderr


def test_a_privileged_container_is_refused(cluster: Cluster, restricted: str, broken: Path) -> None:
    add(broken / "pre-pull" / "daemonset.yaml", "securityContext", {"privileged": True})
    done = cluster.apply(broken / "pre-pull", restricted)
    assert done.returncode == 1
    assert 'Warning: would violate PodSecurity "restricted:latest": privileged (container "pulled"' in done.stderr
    (spec,) = pods([yaml.safe_load((broken / "pre-pull" / "daemonset.yaml").read_text())])
    done = cluster.kubectl("create", "-n", restricted, "-f", "-", given=pod("one", spec))
    assert done.returncode == 1
    assert 'pods "one" is forbidden: violates PodSecurity "restricted:latest"' in done.stderr
