"""Rules about what registries and readers of the image need: layers of a size that they take, and annotations."""

from __future__ import annotations

from collections.abc import Iterator

from prebake.documents.sizes import format_size
from prebake_build.images.checks.findings import Finding, Subject


def too_large(subject: Subject) -> Iterator[Finding]:
    """Layers that a registry refuses."""
    for number, layer in enumerate(subject.image.manifest.layers):
        refusing = {name: limit for name, limit in subject.rules.limits.items() if layer.size > limit}
        if refusing:
            limits = ", ".join(f"{name}: {format_size(limit)}" for name, limit in sorted(refusing.items()))
            yield Finding(
                rule="layer-too-large", layer=number, bytes=layer.size,
                message=f"{format_size(layer.size)} are more than registries take in one layer ({limits})",
                mend="give each model, and each shard of a large one, a layer of its own; or name your registry with "
                "--registry",
            )  # fmt: skip


def too_many(subject: Subject) -> Iterator[Finding]:
    """More layers than nodes can mount."""
    if (count := len(subject.image.manifest.layers)) > subject.rules.most_layers:
        yield Finding(
            rule="too-many-layers",
            message=f"{count} layers, and overlay file systems mount at most {subject.rules.most_layers}",
            mend="bake with a larger shard_size, put fewer models into one image, or join RUN and COPY instructions",
        )


def unannotated(subject: Subject) -> Iterator[Finding]:
    """What tells a reader of the registry what this is."""
    known = {**subject.image.config.labels, **subject.image.annotations}
    for what, keys in subject.rules.annotations.items():
        if not any(known.get(key) for key in keys):
            yield Finding(
                rule="missing-annotations",
                message=f"nothing says {what}: {' or '.join(keys)}",
                mend=f'add LABEL {keys[0]}="…", and the same with --annotation',
            )
