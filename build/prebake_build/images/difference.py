"""What changed between two baked models: provenance, versions, files, and tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prebake.baked.header import Entry
from prebake.baked.manifest import Manifest
from prebake_build.images.models import PlacedModel


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One difference. `before` is None for what was added, `after` for what was removed."""

    model: str
    what: str
    """`model`, `source`, `class`, `option`, `version`, `loading`, `file`, `tensor`."""
    name: str
    before: str | None
    after: str | None

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


def differences(
    before: Mapping[str, PlacedModel], after: Mapping[str, PlacedModel], *, values: bool = True
) -> list[Change]:
    """All changes, by model. `values` compares the values of tensors in files that differ, which reads these files."""
    changes: list[Change] = []
    for name in sorted(before.keys() | after.keys()):
        old, new = before.get(name), after.get(name)
        if old is None or new is None:
            digest = (old or new).manifest.set_digest  # type: ignore[union-attr]
            changes.append(Change(model=name, what="model", name=name, before=digest if old else None,
                                  after=digest if new else None))  # fmt: skip
        else:
            changes += _of_manifests(name, old.manifest, new.manifest)
            if _weights(old.manifest) != _weights(new.manifest):
                changes += _of_tensors(name, old, new, values)
    return changes


def _of_manifests(name: str, old: Manifest, new: Manifest) -> list[Change]:
    def compare(what: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> list[Change]:
        return [
            Change(model=name, what=what, name=key, before=_text(before.get(key)), after=_text(after.get(key)))
            for key in sorted(before.keys() | after.keys())
            if before.get(key) != after.get(key)
        ]

    return [
        *compare("source", old.source.to_dict(), new.source.to_dict()),
        *compare("class", {"family": old.family, "class": old.class_}, {"family": new.family, "class": new.class_}),
        *compare("option", old.options, new.options),
        *compare("loading", old.loading.to_dict(), new.loading.to_dict()),
        *compare("version", {**old.requires, **old.converter}, {**new.requires, **new.converter}),
        *compare("file", _files(old), _files(new)),
        *compare("tied", old.weights.aliases, new.weights.aliases),
    ]


def _of_tensors(name: str, old: PlacedModel, new: PlacedModel, values: bool) -> list[Change]:
    before, after = old.tensors(), new.tensors()
    changed = [
        Change(model=name, what="tensor", name=key, before=_spelled(before.get(key)), after=_spelled(after.get(key)))
        for key in sorted(before.keys() | after.keys())
        if _spelled(before.get(key)) != _spelled(after.get(key))
    ]
    if values:
        told = {change.name for change in changed}
        first, second = old.tensor_digests(), new.tensor_digests()
        changed += [
            Change(model=name, what="values", name=key, before=f"sha256:{first[key]}", after=f"sha256:{second[key]}")
            for key in sorted(first.keys() & second.keys() - told)
            if first[key] != second[key]
        ]
    return changed


def _weights(manifest: Manifest) -> list[tuple[str, str]]:
    return [(file.path, file.sha256) for file in manifest.files if file.path in manifest.weights.all_files]


def _files(manifest: Manifest) -> dict[str, str]:
    return {file.path: f"{file.size:,} bytes sha256:{file.sha256[:12]}" for file in manifest.files}


def _spelled(entry: Entry | None) -> str | None:
    return f"{entry.dtype} {list(entry.shape)}" if entry else None


def _text(value: object) -> str | None:
    return None if value is None else str(value)
