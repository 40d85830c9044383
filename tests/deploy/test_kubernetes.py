"""Manifests are what Kubernetes' published schemas allow, and every pod in them has no right that it does not need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from helpers.manifests import FOLDER, LAYERS, documents, pods

VERSIONS = ("1.34", "1.35", "1.36")


def kind(found: list[dict[str, Any]], name: str) -> dict[str, Any]:
    (document,) = [document for document in found if document["kind"] == name]
    return document


def test_every_file_is_part_of_a_kustomization() -> None:
    for layer in LAYERS:
        kustomization = yaml.safe_load((FOLDER / layer / "kustomization.yaml").read_text())
        named = {name for name in kustomization["resources"] if name.endswith(".yaml")}
        named |= {patch["path"] for patch in kustomization.get("patches", []) if "path" in patch}
        files = {path.name for path in (FOLDER / layer).iterdir()} - {"kustomization.yaml"}
        assert named == files, layer


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("layer", LAYERS)
def test_it_fits_the_schemas(layer: str, version: str) -> None:
    schemas = pytest.importorskip("kubernetes_validate", reason="needs the package kubernetes-validate")
    found = documents(layer)
    for document in found:
        if document["kind"] != "InferenceService":
            schemas.validate(document, version, strict=True)
    for pod in pods(found):  # the pod in KServe's own resource too
        schemas.validate(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, version, strict=True
        )


@pytest.mark.parametrize("layer", LAYERS)
def test_every_pod_is_restricted(layer: str) -> None:
    """As the Pod Security Standard `restricted` wants it, and a read-only root and no token in addition."""
    for pod in pods(documents(layer)):
        context = pod["securityContext"]
        assert (context["runAsNonRoot"], context["seccompProfile"]) == (True, {"type": "RuntimeDefault"})
        assert context["runAsUser"] > 0
        assert pod["automountServiceAccountToken"] is False
        assert "hostNetwork" not in pod and "hostPID" not in pod
        for container in pod["containers"]:
            own = container["securityContext"]
            assert own == {
                "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}
            }  # fmt: skip
            assert {"cpu", "memory"} <= set(container["resources"]["requests"])
            assert "memory" in container["resources"]["limits"]
        assert not [volume for volume in pod.get("volumes", []) if "hostPath" in volume]


@pytest.mark.parametrize("layer", ["base", "image-volume", "kserve"])
def test_services_have_three_probes(layer: str) -> None:
    for pod in pods(documents(layer)):
        (container,) = pod["containers"]
        assert container["startupProbe"]["httpGet"]["path"] == "/readyz"
        assert container["readinessProbe"]["httpGet"]["path"] == "/readyz"
        assert container["livenessProbe"]["httpGet"]["path"] == "/livez"
        ports = [port["containerPort"] for port in container["ports"]]
        assert {container[probe]["httpGet"]["port"] for probe in
                ("startupProbe", "readinessProbe", "livenessProbe")} == set(ports)  # fmt: skip


@pytest.mark.parametrize("layer", ["base", "image-volume"])
def test_selectors_select_the_pods_and_nothing_else(layer: str) -> None:
    found = documents(layer)
    deployment = kind(found, "Deployment")
    labels = deployment["spec"]["template"]["metadata"]["labels"]
    assert labels == {"app.kubernetes.io/name": "prebake"}
    assert deployment["spec"]["selector"]["matchLabels"] == labels
    assert kind(found, "Service")["spec"]["selector"] == labels
    assert kind(found, "PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == labels
    assert kind(found, "NetworkPolicy")["spec"]["podSelector"]["matchLabels"] == labels
    target = kind(found, "HorizontalPodAutoscaler")["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Deployment", deployment["metadata"]["name"])
    assert "replicas" not in deployment["spec"]  # it would undo what the autoscaler decided


def test_the_pods_may_open_no_connection() -> None:
    policy = kind(documents("base"), "NetworkPolicy")["spec"]
    assert (policy.get("egress", []), sorted(policy["policyTypes"])) == ([], ["Egress", "Ingress"])


def test_the_service_finds_the_models_of_the_image_volume() -> None:
    (pod,) = pods(documents("image-volume"))
    (container,) = pod["containers"]
    (mount,) = container["volumeMounts"]
    (volume,) = pod["volumes"]
    assert (volume["name"], volume["image"]["reference"], mount["readOnly"]) == ("weights", "prebake-weights", True)
    assert container["env"] == [{"name": "PREBAKE_ROOT", "value": f"{mount['mountPath']}/models"}]
    assert container["image"] == "prebake-code"


def test_the_service_finds_the_models_of_the_modelcar() -> None:
    (pod,) = pods(documents("kserve"))
    environment = {variable["name"]: variable["value"] for variable in pod["containers"][0]["env"]}
    assert environment == {"STORAGE_URI": "oci://prebake-weights", "PREBAKE_ROOT": "/mnt/models"}


def test_the_pre_pull_uses_no_other_image() -> None:
    (pod,) = pods(documents("pre-pull"))
    assert [container["image"] for container in pod["containers"]] == ["prebake"]


def test_probes_say_what_they_were_measured_from() -> None:
    text = Path(FOLDER / "base" / "probes.yaml").read_text()
    assert text.startswith("# prebake probes: ")
    assert text.count("\n# ") == 2
