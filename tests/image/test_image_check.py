"""`prebake image check` on images that the real engine built."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from helpers.image_builds import remove
from helpers.oci_images import weights
from prebake_build.images.checks.check import check
from prebake_build.images.saved import saved_image

pytestmark = pytest.mark.docker

NAME = "prebake-test-check"
BASE = "python:3.11-slim-bookworm"
HABIT = f"""\
FROM {BASE}
ARG HF_TOKEN
RUN --mount=type=bind,target=/src cache=/root/.cache/huggingface/hub/models--acme--m \\
 && mkdir -p $cache/blobs $cache/snapshots/1 && cp /src/weights $cache/blobs/0123 \\
 && ln -s ../../blobs/0123 $cache/snapshots/1/model.safetensors && chmod 700 /root
CMD ["python"]
"""
CHOWNED = """\
FROM scratch
LABEL org.opencontainers.image.title=t org.opencontainers.image.licenses=mit org.opencontainers.image.version=1
COPY weights /models/m/model.safetensors
COPY --chown=65532 weights /models/m/model.safetensors
USER 65532:65532
CMD ["serve"]
"""


@pytest.fixture
def image(engine: Any) -> Iterator[str]:
    yield NAME
    remove(engine, NAME)


def build(context: Path, dockerfile: str, *arguments: str) -> None:
    (context / "Dockerfile").write_text(dockerfile)
    (context / "weights").write_bytes(weights(2))
    command = ["docker", "buildx", "build", "--provenance=false", "--load", "--tag", NAME, *arguments, str(context)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_download_into_the_cache_in_a_run(engine: Any, image: str, tmp_path: Path) -> None:
    build(tmp_path, HABIT, "--build-arg=HF_TOKEN=hf_" + "a" * 34)
    with saved_image(engine, image) as saved:
        findings = {finding.rule: finding for finding in check(saved)}
        steps = {rule: saved.config.instruction(f.layer) for rule, f in findings.items() if f.layer is not None}
    assert {"download-cache", "secret", "root-user", "missing-annotations"} <= set(findings)
    assert findings["download-cache"].bytes == len(weights(2))
    assert "models--acme--m" in steps["download-cache"]


def test_weights_stored_again_by_a_chown(engine: Any, image: str, tmp_path: Path) -> None:
    build(tmp_path, CHOWNED)
    with saved_image(engine, image) as saved:
        (finding,) = [finding for finding in check(saved) if finding.rule != "compressed-weights"]
        assert (finding.rule, finding.layer, finding.bytes) == ("duplicate-weights", 1, len(weights(2)))
        assert finding.to_dict(saved)["layer"]["created_by"].startswith("COPY --chown=65532")
