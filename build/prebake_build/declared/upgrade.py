"""`prebake lock --upgrade`: the newest revision of a source, also where `models.toml` pins an older one."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from prebake.documents import toml
from prebake.errors import ConfigError
from prebake_build.declared.lock import Resolves
from prebake_build.declared.spec import ModelSpec, Spec, read_spec
from prebake_build.files.atomic import write_text

_PINNED = re.compile(r"(hf:[^@\s]+(?:@[^@\s]+)?)@[0-9a-f]{40}")


def upgrade_pins(spec: Spec, names: Sequence[str], cache: Resolves) -> Spec:
    """The models file with the commits that the named sources pin replaced by the newest ones: of the branch or
    tag in the source, else of the default branch.

    Sources that pin no commit stay as they are: `lock` resolves them anyway. The file keeps its comments and its order.
    Raises ConfigError if a source cannot be replaced in the text, and SourceError.
    """
    text = spec.path.read_text(encoding="utf-8")
    for model in spec.select(names):
        newer = _newest(spec, model, cache)
        if newer != model.source:
            text = _replaced(spec, text, model, newer)
    if text != spec.path.read_text(encoding="utf-8"):
        write_text(spec.path, text)
    return read_spec(spec.path)


def _newest(spec: Spec, model: ModelSpec, cache: Resolves) -> str:
    found = _PINNED.fullmatch(model.source)
    if not found:
        return model.source
    resolved = cache.resolve(spec.open(replace(model, source=found[1])))
    return f"{found[1]}@{resolved.revision.removeprefix('commit:')}"


def _replaced(spec: Spec, text: str, model: ModelSpec, newer: str) -> str:
    """The text with the model's source replaced; what it means otherwise must not change."""
    expected = toml.loads(text)
    expected["models"][model.name]["source"] = newer
    for quoted in (f'"{model.source}"', f"'{model.source}'"):
        start = 0
        while (place := text.find(quoted, start)) >= 0:
            changed = f'{text[:place]}"{newer}"{text[place + len(quoted) :]}'
            if toml.loads(changed) == expected:
                return changed
            start = place + 1
    raise ConfigError(
        f"{spec.path}: models.{model.name}.source: cannot be replaced in this file: write it yourself: "
        f'source = "{newer}"'
    )
