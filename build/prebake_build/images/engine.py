"""Images and containers through the Docker SDK: an image's layers, and services started in containers.

`ContainerLauncher` is the launcher that `prebake_build.measure.compare` uses for containers. They have the label
`prebake.measure=1`, so leftovers of a killed process can be found:
`docker ps --all --filter label=prebake.measure=1`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prebake.errors import PrebakeError

_EMPTY = frozenset(
    ("ARG", "CMD", "ENTRYPOINT", "ENV", "EXPOSE", "HEALTHCHECK", "LABEL", "MAINTAINER", "ONBUILD", "SHELL",
     "STOPSIGNAL", "USER", "VOLUME")
)  # fmt: skip
"""Instructions that change only an image's configuration and add no layer."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layer:
    """One layer of an image."""

    digest: str
    """`sha256:…` of the uncompressed layer (the diff ID), which does not depend on a registry's compression."""
    size: int
    """Bytes on disk, as reported by the engine."""
    created_by: str
    """The instruction that created it; empty for an imported layer."""


def open_engine() -> Any:
    """A `docker.DockerClient` for the engine of `DOCKER_HOST`, else of the current Docker context.

    Raises PrebakeError if no engine answers.
    """
    import docker

    address = os.environ.get("DOCKER_HOST") or _context_address()
    try:
        return docker.DockerClient(base_url=address) if address else docker.from_env()
    except docker.errors.DockerException as error:
        raise PrebakeError(
            f"no Docker engine answers at {address or 'its usual address'} ({error}): "
            "start one, or name it with DOCKER_HOST"
        ) from error


def _context_address() -> str | None:
    """The address of the context selected with `docker context use`, which the SDK's default ignores."""
    from docker.context import ContextAPI

    context = ContextAPI.get_current_context()
    return str(context.Host) if context and context.Host else None


def image_layers(client: Any, image: str) -> tuple[Layer, ...]:
    """The layers of a local image, the lowest first. Raises PrebakeError if the image does not exist."""
    import docker

    try:
        found = client.images.get(image)
        history = found.history()
    except docker.errors.ImageNotFound as error:
        raise PrebakeError(
            f"{image}: there is no such image here: build it (docker buildx bake), or pull it"
        ) from error
    return match_layers(image, found.attrs["RootFS"]["Layers"], history)


def match_layers(image: str, digests: Sequence[str], history: Sequence[Mapping[str, Any]]) -> tuple[Layer, ...]:
    """Match digests (lowest first) with the entries of the engine's history (newest first).

    The history also lists instructions that added no layer, without marking them: they are recognised by their names
    or, if that does not give the right number, by their size of 0. Raises PrebakeError if neither gives it.
    """
    oldest_first = list(reversed(history))
    made = [entry for entry in oldest_first if entry["Size"] or not _makes_no_layer(entry["CreatedBy"] or "")]
    if len(made) != len(digests):
        made = [entry for entry in oldest_first if entry["Size"]]
    if len(made) != len(digests):
        raise PrebakeError(f"{image}: has {len(digests)} layers, but its history lists {len(made)}")
    return tuple(
        Layer(digest=digest, size=entry["Size"], created_by=entry["CreatedBy"] or "")
        for digest, entry in zip(digests, made, strict=True)
    )


def _makes_no_layer(created_by: str) -> bool:
    # classic builds write `/bin/sh -c #(nop)  ENV …`
    words = created_by.rpartition("#(nop)")[2].split(None, 1)
    return bool(words) and words[0] in _EMPTY
