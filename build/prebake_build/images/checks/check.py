"""Holds an image against all rules."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError
from prebake_build.images.checks import packages, registry, running, secrets, weights
from prebake_build.images.checks.data import rules
from prebake_build.images.checks.findings import Finding, Subject
from prebake_build.images.contents import read_contents
from prebake_build.images.oci_layout import Image

RULES: dict[str, tuple[Callable[[Subject], Iterator[Finding]], ...]] = {
    "duplicate-weights": (weights.duplicate_formats, weights.duplicate_blobs),
    "deleted-weights": (weights.deleted,),
    "compressed-weights": (weights.compressed,),
    "mixed-layer": (weights.mixed,),
    "download-cache": (weights.in_a_cache,),
    "layer-too-large": (registry.too_large,),
    "too-many-layers": (registry.too_many,),
    "gpu-packages": (running.gpu_packages,),
    "dead-weight": (packages.dead_weight,),
    "secret": (secrets.in_environment, secrets.in_labels, secrets.in_history, secrets.in_files),
    "unreadable": (running.unreadable,),
    "root-user": (running.root_user,),
    "hub-calls": (running.hub_calls,),
    "missing-annotations": (registry.unannotated,),
}
"""Rule → the functions that look for it, in the order of the report."""


def check(
    image: Image, *, ignored: Collection[str] = (), registries: Collection[str] = (), gpu: bool = False
) -> list[Finding]:
    """What is wrong with the image: by rule, in the order of RULES, then by bytes.

    `ignored` are names of rules. `registries` are those whose limits count (default: all that are known). `gpu`: the
    image is meant for GPUs. Raises ConfigError for an unknown name, DocumentError and IntegrityError for an image that
    cannot be read.
    """
    data = rules()
    _known("rule", ignored, RULES)
    _known("registry", registries, data.limits)
    if registries:
        data = replace(data, limits={name: data.limits[name] for name in registries})
    contents = read_contents(
        image,
        large=data.smallest,
        wanted=lambda path: path in running.ACCOUNTS or secrets.wanted(data, path),
    )
    subject = Subject.of(image, contents, data)
    skipped = {*ignored, *(("gpu-packages",) if gpu else ())}
    found: list[Finding] = []
    for name, functions in RULES.items():
        if name not in skipped:
            findings = [finding for function in functions for finding in function(subject)]
            found += sorted(findings, key=lambda finding: -finding.bytes)
    return found


def _known(what: str, names: Collection[str], known: Collection[str]) -> None:
    for name in names:
        if name not in known:
            raise ConfigError(
                f"{quote(name)} is not a known {what} (expected one of {', '.join(known)}){nearest(name, list(known))}"
            )
