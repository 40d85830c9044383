"""Fixtures of tests that build and start images; `tests/conftest.py` makes them known."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from helpers.image_builds import NAME, TINY, TOKEN, Build, bake, copy_context, missing, remove


@pytest.fixture(scope="session")
def engine() -> Iterator[Any]:
    """A client of the Docker engine. Without one, tests are skipped with the reason."""
    from prebake_build.images.engine import open_engine

    if reason := missing():
        if os.environ.get("PREBAKE_REQUIRE_DOCKER"):  # CI started an engine: a skip would hide that it is gone
            pytest.fail(reason)
        pytest.skip(reason)
    from docker.errors import APIError

    client = open_engine()
    before = {image["Id"] for image in client.api.images()}
    yield client
    for image in client.api.images():  # a push leaves its image here as well, a second build under a name the first
        if image["Id"] not in before and all(NAME in tag for tag in image["RepoTags"] or ()):
            with suppress(APIError):  # a container that ends still has it
                remove(client, image["Id"])
    client.close()


@pytest.fixture(scope="session")
def context(engine: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the build context. Copy before you change it."""
    return copy_context(tmp_path_factory.mktemp("context"))


@pytest.fixture(scope="session")
def built(engine: Any, context: Path) -> Iterator[Build]:
    """The image, the baseline and the weights of the tiny models."""
    build = bake(context, "image", "baseline", "weights", IMAGE=NAME, MODELS_FILE=TINY, HF_TOKEN=TOKEN)
    assert build.code == 0, build.output
    yield build
    for image in (NAME, f"{NAME}-baseline", f"{NAME}-weights", f"{NAME}-changed"):
        remove(engine, image)
