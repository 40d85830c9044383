"""Pins sources of the hub that a load did not pin, and leaves out a dtype that the checkpoint declares itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prebake.baked import hub
from prebake.baked.header import read_header
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake_build.scanning.findings import Finding
from prebake_build.sources.hugging_face import HuggingFaceSource

_COMMIT = re.compile(r"[0-9a-f]{40}")
_FLOATS = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16"}
"""Names of safetensors and of torch."""


def pinned(findings: Iterable[Finding]) -> list[Finding]:
    """With a commit in each source of the hub; `unresolved` says why where the hub does not tell it."""
    known: dict[str, tuple[str | None, str | None]] = {}
    result = []
    for finding in findings:
        if finding.uri is None or not finding.uri.startswith("hf:") or finding.obstacle or finding.failed:
            result.append(finding)
            continue
        if finding.uri not in known:
            known[finding.uri] = _pin(finding.uri)
        uri, why = known[finding.uri]
        result.append(replace(finding, uri=uri or finding.uri, unresolved=why))
    return result


def _pin(uri: str) -> tuple[str | None, str | None]:
    """The source with its commit, or None and why there is none."""
    try:
        source = HuggingFaceSource.parse(uri, uri.removeprefix("hf:"), "scan")
        if source.revision is not None and _COMMIT.fullmatch(source.revision):
            return uri, None
        return f"hf:{source.repo}@{source.commit()}", None
    except (ConfigError, SourceError) as error:
        return None, str(error)


def without_default_dtype(finding: Finding, base: Path) -> Finding:
    """Without a dtype that the checkpoint's `config.json` declares, or that all its weights have: a bake takes it."""
    if finding.dtype is None:
        return finding
    uri = finding.uri or ""
    declared = _config(uri, base)
    own = declared.get("dtype", declared.get("torch_dtype")) or _stored(uri, base)
    return replace(finding, dtype=None) if own == finding.dtype else finding


def _config(uri: str, base: Path) -> dict[str, Any]:
    """The checkpoint's `config.json`, as far as it is on this machine."""
    path = _local(uri, "config.json", base)
    try:
        document = json.loads(path.read_text(encoding="utf-8")) if path is not None else {}
    except (OSError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}


def _stored(uri: str, base: Path) -> str | None:
    """The dtype of all floating-point weights of `model.safetensors`, as far as it is on this machine."""
    path = _local(uri, "model.safetensors", base)
    try:
        found = {tensor.dtype for tensor in read_header(path).entries.values()} if path is not None else set()
    except PrebakeError:
        return None
    floats = found & _FLOATS.keys()
    return _FLOATS[floats.pop()] if len(floats) == 1 else None


def _local(uri: str, file: str, base: Path) -> Path | None:
    """A file of the checkpoint on this machine: in its folder, or in the hub's cache."""
    if uri.startswith("path:"):
        return base / uri.removeprefix("path:") / file
    if not uri.startswith("hf:"):
        return None
    from huggingface_hub import try_to_load_from_cache

    repo, revision = hub.split(uri)
    path = try_to_load_from_cache(repo, file, revision=revision)
    return Path(path) if isinstance(path, str) else None
