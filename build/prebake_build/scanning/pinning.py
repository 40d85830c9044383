"""Pins sources of the hub that a load did not pin, and leaves out a dtype that the checkpoint declares itself."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

from prebake.errors import ConfigError, SourceError
from prebake_build.scanning.findings import Finding
from prebake_build.sources.hugging_face import HuggingFaceSource

_COMMIT = re.compile(r"[0-9a-f]{40}")


def pinned(findings: Iterable[Finding]) -> list[Finding]:
    """With a commit in each source of the hub; `unresolved` says why where the hub does not tell it."""
    known: dict[str, tuple[str | None, str | None]] = {}
    result = []
    for finding in findings:
        if finding.uri is None or not finding.uri.startswith("hf:") or finding.obstacle is not None:
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
    """Without a dtype that the checkpoint's `config.json` declares, which is what a bake takes by itself."""
    declared = _config(finding.uri or "", base)
    own = declared.get("dtype", declared.get("torch_dtype"))
    return replace(finding, dtype=None) if finding.dtype is not None and own == finding.dtype else finding


def _config(uri: str, base: Path) -> dict[str, Any]:
    """The checkpoint's `config.json`, as far as it is on this machine."""
    path: Any = None
    if uri.startswith("path:"):
        path = base / uri.removeprefix("path:") / "config.json"
    elif uri.startswith("hf:"):
        from huggingface_hub import try_to_load_from_cache

        repo, _, revision = uri.removeprefix("hf:").partition("@")
        path = try_to_load_from_cache(repo, "config.json", revision=revision or None)
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, TypeError, ValueError):
        return {}
    return document if isinstance(document, dict) else {}
