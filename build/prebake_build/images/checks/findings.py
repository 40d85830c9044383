"""What a rule finds, and what rules look at."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from prebake_build.images.checks.data import Rules
from prebake_build.images.contents import Contents, Entry
from prebake_build.images.oci_layout import Image

_SHOWN = 5
"""Paths of a finding that are printed; JSON has all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One thing that is wrong, and the way to mend it."""

    rule: str
    message: str
    mend: str
    layer: int | None = None
    """Number of the layer, the lowest is 0; None if the configuration or the manifest is wrong."""
    bytes: int = 0
    """What it costs: bytes that are not needed, or that are moved or stored in vain."""
    paths: tuple[str, ...] = ()
    """Files in the image."""

    def to_dict(self, image: Image) -> dict[str, Any]:
        layer = None
        if self.layer is not None:
            layer = {
                "number": self.layer,
                "digest": image.manifest.layers[self.layer].digest,
                "created_by": image.config.instruction(self.layer),
            }
        return {"rule": self.rule, "message": self.message, "mend": self.mend, "layer": layer, "bytes": self.bytes,
                "paths": list(self.paths)}  # fmt: skip

    @property
    def shown(self) -> tuple[str, ...]:
        """The paths as text, not too many."""
        more = len(self.paths) - _SHOWN
        return self.paths if more <= 1 else (*self.paths[:_SHOWN], f"and {more} more")


@dataclass(frozen=True, slots=True)
class Subject:
    """An image and its files, and which of these are weights."""

    image: Image
    contents: Contents
    rules: Rules
    weights: dict[str, Entry] = field(default_factory=dict)
    """Path → file, of those that a container sees."""

    @classmethod
    def of(cls, image: Image, contents: Contents, rules: Rules) -> Subject:
        found = {path: entry for path, entry in contents.files.items() if is_weights(entry, rules)}
        for path, entry in contents.files.items():
            # Hugging Face's cache names blobs by their hash; only the links in its snapshots say what they are
            if entry.kind == "link" and posixpath.splitext(path)[1] in rules.formats:
                target = contents.resolve(path)
                if target is not None and target.digest:
                    found[target.path] = target
        return cls(image, contents, rules, found)

    @property
    def runs(self) -> bool:
        """Whether a container of it does anything; an image of data has no command."""
        return bool(self.image.config.command)


def is_weights(entry: Entry, rules: Rules) -> bool:
    """Whether a file holds weights, by its size with its name or its first bytes."""
    return bool(entry.digest) and (
        posixpath.splitext(entry.path)[1] in rules.formats
        or entry.head.startswith(b"GGUF")
        or (entry.head[8:10] == b'{"' and int.from_bytes(entry.head[:8], "little") < min(entry.size, 100_000_000))
    )


def by_layer(entries: Iterable[Entry]) -> dict[int, list[Entry]]:
    """The entries of each layer, sorted by path."""
    found: dict[int, list[Entry]] = {}
    for entry in sorted(entries, key=lambda entry: entry.path):
        found.setdefault(entry.layer, []).append(entry)
    return dict(sorted(found.items()))


def paths(entries: Sequence[Entry]) -> tuple[str, ...]:
    return tuple(f"/{entry.path}" for entry in entries)


def total(entries: Iterable[Entry]) -> int:
    return sum(entry.size for entry in entries)
