"""What a bake of a locked model gave, as the lock records it, and how a later bake differs from it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from prebake.baked.manifest import Manifest
from prebake.baked.warmup import spell_warmup
from prebake.documents.messages import quote
from prebake.documents.table import Table
from prebake_build.declared.spec import ModelSpec

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
RECIPE = "recipe"
"""Key of `Baked.converter` whose value is a digest of source, options and converter: its parts are compared instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Baked:
    """The result of baking the locked checkpoint."""

    converter: Mapping[str, str]
    """Package → version that wrote the baked model."""
    set_digest: str
    """Digest of the baked model: `sha256:…`."""
    layer_digest: str | None = None
    """Digest of its uncompressed image layer: `sha256:…`."""
    shard_digests: tuple[str, ...] = ()
    """Digests of the layers of its shards, in order; none if it is not split."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """What `models.toml` declares beside the source, without defaults."""
    requires: Mapping[str, str] = field(default_factory=dict)
    """Package → version that proved it, which its manifest names too."""

    @classmethod
    def of(
        cls, model: ModelSpec, manifest: Manifest, layer_digest: str | None, shard_digests: tuple[str, ...] = ()
    ) -> Baked:
        """The result of a bake. `layer_digest` is None if no image was written."""
        return cls(
            converter=dict(manifest.converter), set_digest=manifest.set_digest, layer_digest=layer_digest,
            shard_digests=shard_digests,
            options=declared_options(model), requires=dict(manifest.requires),
        )  # fmt: skip

    @classmethod
    def from_table(cls, table: Table) -> Baked:
        baked = cls(
            converter=table.mapping("converter", str),
            set_digest=table.take("set_digest", str),
            layer_digest=table.maybe("layer_digest", str),
            shard_digests=table.strings("shard_digests", []),
            options=table.take("options", dict, {}),
            requires=table.mapping("requires", str, {}),
        )
        for key in ("set_digest", "layer_digest"):
            if (value := getattr(baked, key)) is not None and not _DIGEST.fullmatch(value):
                raise table.fail(key, f'{quote(value)} is not "sha256:" and 64 hexadecimal digits')
        for value in baked.shard_digests:
            if not _DIGEST.fullmatch(value):
                raise table.fail("shard_digests", f'{quote(value)} is not "sha256:" and 64 hexadecimal digits')
        table.finish()
        return baked

    def to_dict(self) -> dict[str, Any]:
        layer: dict[str, Any] = {"layer_digest": self.layer_digest} if self.layer_digest else {}
        layer |= {"shard_digests": list(self.shard_digests)} if self.shard_digests else {}
        tables = {"converter": self.converter, "requires": self.requires, "options": self.options}
        written = {key: dict(sorted(table.items())) for key, table in tables.items() if table or key == "converter"}
        return {"set_digest": self.set_digest, **layer, **written}


def declared_options(model: ModelSpec) -> dict[str, Any]:
    """What a table of `models.toml` says beside name and source, without what is the default anyway."""
    options: dict[str, Any] = {}
    for declared in dataclasses.fields(model):
        value = getattr(model, declared.name)
        default = declared.default
        if declared.default_factory is not dataclasses.MISSING:
            default = declared.default_factory()
        if declared.name == "options":  # the keys of the model's family
            options |= {key: _plain(item) for key, item in value.items() if item not in ({}, (), [], None)}
        if declared.name in ("name", "source", "options") or value == default:
            continue
        options[declared.name.rstrip("_")] = _plain(spell_warmup(value) if declared.name == "warmup" else value)
    return options


def changed_declaration(locked: Baked, model: ModelSpec) -> list[str]:
    """How `models.toml` differs from what the locked result was baked with, one line for each option."""
    return _compared("options", locked.options, declared_options(model))


def changed_result(locked: Baked, found: Baked) -> list[str]:
    """How a new result differs from the locked one, one line for each difference.

    Layer digests are compared if both have one.
    """
    converters = [{key: value for key, value in baked.converter.items() if key != RECIPE} for baked in (locked, found)]
    lines = _compared("converter", *converters)
    # a lock that was recorded before it knew these tables has none
    lines += _compared("requires", locked.requires, found.requires) if locked.requires else []
    lines += _compared("", {"set_digest": locked.set_digest}, {"set_digest": found.set_digest})
    if locked.layer_digest and found.layer_digest:
        lines += _compared("", {"layer_digest": locked.layer_digest}, {"layer_digest": found.layer_digest})
        lines += _compared("shard_digests", *(_numbered(baked.shard_digests) for baked in (locked, found)))
    return lines


def _compared(where: str, locked: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    return [
        f"{where}{'.' if where else ''}{key}: locked {_spelled(locked.get(key))}, now {_spelled(now.get(key))}"
        for key in sorted(locked.keys() | now.keys())
        if locked.get(key) != now.get(key)
    ]


def _numbered(values: tuple[str, ...]) -> dict[str, str]:
    return {f"{number:05}": value for number, value in enumerate(values, 1)}


def _spelled(value: object) -> str:
    return "none" if value is None else quote(value) if isinstance(value, str) else str(value)


def _plain(value: Any) -> Any:
    """The value as TOML reads it back."""
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return [_plain(item) for item in value] if isinstance(value, (list, tuple)) else value
