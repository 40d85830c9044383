"""What the kustomizations of deploy/kubernetes render, and the pods in it."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from helpers import ROOT

FOLDER = ROOT / "deploy" / "kubernetes"
LAYERS = ("base", "image-volume", "pre-pull", "kserve")


def documents(layer: str) -> list[dict[str, Any]]:
    """What `kubectl apply -k` would send."""
    if not shutil.which("kubectl"):
        pytest.skip("kubectl, which renders kustomize folders, is not installed")
    done = subprocess.run(["kubectl", "kustomize", str(FOLDER / layer)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [document for document in yaml.safe_load_all(done.stdout) if document]


def pods(found: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The specs of the pods that the documents describe."""
    for document in found:
        if document["kind"] in ("Deployment", "DaemonSet"):
            yield document["spec"]["template"]["spec"]
        elif document["kind"] == "InferenceService":
            predictor = document["spec"]["predictor"]
            yield {key: value for key, value in predictor.items() if key not in ("minReplicas", "maxReplicas")}
