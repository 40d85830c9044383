"""The JSON documents of an OCI image: descriptor, configuration, manifest, index.

Specification: https://github.com/opencontainers/image-spec (version 1.1). The documents come from other tools and
registries, so keys that are not read here are ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from prebake.documents.messages import quote
from prebake.documents.table import Table
from prebake.errors import ConfigError

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
INDEXES = (INDEX, "application/vnd.docker.distribution.manifest.list.v2+json")
MANIFESTS = (MANIFEST, "application/vnd.docker.distribution.manifest.v2+json")

REF_NAME = "org.opencontainers.image.ref.name"
"""Annotation of a layout's index with the image's tag."""
IMAGE_NAME = "io.containerd.image.name"
"""Annotation beside it with the whole name, which `docker load` and `ctr image import` give the image."""
_PART = r"[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*"
_NAME = re.compile(rf"(?:[A-Za-z0-9.-]+(?::[0-9]+)?/)?{_PART}(?:/{_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
_PLATFORM = re.compile(r"[a-z0-9]+/[a-z0-9_]+(?:/[a-z0-9.]+)?")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Descriptor:
    """A reference to a blob."""

    media_type: str
    digest: str
    """`sha256:…` of the blob."""
    size: int
    """Bytes of the blob."""
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: str | None = None
    """`linux/amd64`, `linux/arm/v7`; None if the document does not say."""

    @classmethod
    def from_table(cls, table: Table) -> Descriptor:
        found = cls(
            media_type=table.take("mediaType", str),
            digest=table.take("digest", str),
            size=table.take("size", int),
            annotations=_strings(table, "annotations"),
            platform=_platform(table.table("platform")) if table.raw("platform") is not None else None,
        )
        if not _DIGEST.fullmatch(found.digest):
            raise table.fail("digest", f'{quote(found.digest)} is not "sha256:" and 64 hexadecimal digits')
        return found

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform:
            document["platform"] = platform_dict(self.platform)
        return document


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """One entry of an image's history."""

    created_by: str
    makes_layer: bool


@dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """What an image runs, and the layers' digests before compression."""

    user: str
    environment: Mapping[str, str]
    command: tuple[str, ...]
    """Entry point and arguments; empty for an image of data."""
    folder: str
    """The working directory."""
    labels: Mapping[str, str]
    diff_ids: tuple[str, ...]
    history: tuple[Step, ...]

    @classmethod
    def from_table(cls, table: Table) -> Config:
        inner = table.table("config", {}) if table.raw("config") is not None else Table({}, table.at("config"))
        variables = inner.strings("Env") if inner.raw("Env") is not None else ()
        history = table.items("history", _step) if table.raw("history") is not None else ()
        return cls(
            user=inner.maybe("User", str) or "",
            environment=dict(variable.partition("=")[::2] for variable in variables),
            command=tuple(
                word for key in ("Entrypoint", "Cmd") if inner.raw(key) is not None for word in inner.strings(key)
            ),
            folder=inner.maybe("WorkingDir", str) or "/",
            labels=_strings(inner, "Labels"),
            diff_ids=table.table("rootfs").strings("diff_ids"),
            history=history,
        )

    def instruction(self, number: int) -> str:
        """What created the layer with this number (0 is the lowest); empty if the history does not say."""
        return next((step.created_by for step, layer in self.steps() if layer == number), "")

    def steps(self) -> Iterator[tuple[Step, int | None]]:
        """The history, each step with the number of its layer; None if it makes none, or their numbers do not fit."""
        fits = sum(step.makes_layer for step in self.history) == len(self.diff_ids)
        layers = count()
        for step in self.history:
            yield step, next(layers) if step.makes_layer and fits else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Manifest:
    """One platform's image: its configuration and its layers, the lowest first."""

    config: Descriptor
    layers: tuple[Descriptor, ...]
    annotations: Mapping[str, str]

    @classmethod
    def from_table(cls, table: Table) -> Manifest:
        return cls(
            config=Descriptor.from_table(table.table("config")),
            layers=table.items("layers", Descriptor.from_table),
            annotations=_strings(table, "annotations"),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": self.config.to_dict(),
            "layers": [layer.to_dict() for layer in self.layers],
            "annotations": dict(sorted(self.annotations.items())),
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """A list of images: of platforms, or the images of a layout."""

    manifests: tuple[Descriptor, ...]
    annotations: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def from_table(cls, table: Table) -> Index:
        return cls(
            manifests=table.items("manifests", Descriptor.from_table), annotations=_strings(table, "annotations")
        )

    def to_dict(self) -> dict[str, Any]:
        document: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": INDEX,
            "manifests": [manifest.to_dict() for manifest in self.manifests],
        }
        return {**document, "annotations": dict(sorted(self.annotations.items()))} if self.annotations else document


def check_name(name: str) -> str:
    """The name of an image, as `name_annotations` takes it. Raises ConfigError."""
    path, colon, tag = name.rpartition(":")
    if not colon or "/" in tag:
        path, tag = (name, "latest") if "/" in name else ("", name)
    if not _TAG.fullmatch(tag) or ((path or colon) and not _NAME.fullmatch(path)):
        raise ConfigError(
            f'{quote(name)} is no tag, such as "v2", and no name of an image, such as "registry.example/weights:v2"'
        )
    return name


def check_platform(platform: str) -> str:
    """A platform. Raises ConfigError."""
    if not _PLATFORM.fullmatch(platform):
        raise ConfigError(f'{quote(platform)} is no platform of the form OS/ARCH, such as "linux/arm64"')
    return platform


def name_annotations(name: str) -> dict[str, str]:
    """The annotations of an image that is called `v2`, `team/weights:v2` or `registry.example/team/weights:v2`."""
    path, colon, tag = name.rpartition(":")
    if not colon and "/" not in name:
        return {REF_NAME: name}
    if not colon or "/" in tag:
        path, tag = name, "latest"
    domain = path.partition("/")[0]
    if "/" not in path:
        path = f"docker.io/library/{path}"
    elif not (set(".:") & set(domain) or domain == "localhost"):
        path = f"docker.io/{path}"
    return {REF_NAME: tag, IMAGE_NAME: f"{path}:{tag}"}


def platform_dict(platform: str) -> dict[str, str]:
    """`linux/arm/v7` as the documents spell it."""
    return dict(zip(("os", "architecture", "variant"), platform.split("/"), strict=False))


def _platform(table: Table) -> str:
    parts = [table.take("os", str), table.take("architecture", str), table.maybe("variant", str)]
    return "/".join(part for part in parts if part)


def _strings(table: Table, key: str) -> dict[str, str]:
    return table.mapping(key, str, {}) if table.raw(key) is not None else {}


def _step(table: Table) -> Step:
    return Step(created_by=table.maybe("created_by", str) or "", makes_layer=not table.take("empty_layer", bool, False))
