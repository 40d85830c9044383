"""Credentials are found in variables, labels, history and files, and their values are never shown."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from helpers.image_findings import CODE, PACKAGES, found, one
from helpers.oci_images import GOOD_LABELS, LayerOf, write_image
from prebake_build.images.checks.check import check
from prebake_build.images.documents import Step
from prebake_build.images.oci_layout import Layout


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"config": {"Env": ["HF_HUB_OFFLINE=1", "HF_TOKEN=abc"]}},
      "the variable HF_TOKEN holds a credential, as its name says"),
     ({"config": {"Env": ["HF_HUB_OFFLINE=1", "X=ghp_" + "a" * 36]}}, "the variable X holds a GitHub token"),
     ({"config": {"Labels": {**GOOD_LABELS, "x": "hf_" + "b" * 34}}},
      "the label or annotation x holds a Hugging Face token"),
     ({"history": ["ARG DB_PASSWORD=hunter2"]}, "the history holds a value of DB_PASSWORD"),
     ({"history": ["RUN curl -H 'Bearer glpat-" + "c" * 20 + "'"]}, "the history holds a GitLab token")],
)  # fmt: skip
def test_secrets_in_the_configuration(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    finding = one(tmp_path, CODE, **changes)
    assert (finding.rule, finding.message) == ("secret", message)
    assert "hunter2" not in str(finding) and "aaaa" not in str(finding)


@pytest.mark.parametrize(
    "changes",
    [{"config": {"Env": ["HF_HUB_OFFLINE=1", "HF_TOKEN=", "TOKENIZERS_PARALLELISM=false",
                         "API_KEY_FILE=/run/secrets/key", "USE_TOKEN=true"]}},
     {"history": ["ARG HF_TOKEN", "RUN HF_TOKEN=$HF_TOKEN python x.py", 'RUN TOKEN="$(cat /run/secrets/t)" make']}],
)  # fmt: skip
def test_what_only_names_a_secret_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    assert found(tmp_path, CODE, **changes) == []


@pytest.mark.parametrize(
    ("path", "text", "what"),
    [("app/settings.py", b"key = 'sk-" + b"a" * 40 + b"'", "an OpenAI key"),
     ("home/u/.netrc", b"machine x login y password z", "credentials, as its name says"),
     ("app/.env", b"# test\nPORT=1\nAWS_SECRET_ACCESS_KEY=abc\n", "credentials, as its name says"),
     ("root/.ssh/id_rsa", b"-----BEGIN OPENSSH PRIVATE KEY-----\n", "a private key")],
)  # fmt: skip
def test_secrets_in_files(tmp_path: Path, path: str, text: bytes, what: str) -> None:
    finding = one(tmp_path, CODE, LayerOf({path: text}))
    assert (finding.rule, finding.layer, finding.bytes, finding.paths) == ("secret", 1, len(text), (f"/{path}",))
    assert finding.message == f"a file holds {what}"


def test_a_secret_that_a_later_layer_deletes_is_still_there(tmp_path: Path) -> None:
    finding = one(tmp_path, LayerOf({"app/.env": b"HF_TOKEN=abc"}), LayerOf({"app/.wh..env": b""}))
    assert (finding.layer, finding.message) == (
        0,
        "a file holds credentials, as its name says (deleted later, but still there)",
    )


@pytest.mark.parametrize(
    ("path", "text"),
    [(f"{PACKAGES}/x/test_tokens.py", b"hf_" + b"a" * 34), ("app/.env", b"PORT=8000\nHF_TOKEN=\n"),
     ("root/.docker/config.json", b"{}"), ("etc/ssl/openssl.cnf", b"# password = \n")],
)  # fmt: skip
def test_files_without_secrets(tmp_path: Path, path: str, text: bytes) -> None:
    assert found(tmp_path, CODE, LayerOf({path: text})) == []


def test_a_history_of_more_layers_than_there_are_names_none(tmp_path: Path) -> None:
    image = Layout.open(write_image(tmp_path / "image", CODE)).image()
    history = (*image.config.history, Step(created_by="RUN login hf_" + "b" * 34, makes_layer=True))
    (finding,) = check(replace(image, config=replace(image.config, history=history)))
    assert (finding.message, finding.layer) == ("the history holds a Hugging Face token", None)
