"""What the hooks saw, as one finding for each model: the lines of `PREBAKE_OBSERVE` read, and the same loads merged.

Several processes, and several loads of one process, give one finding. Loads of single files of a repository (tokenizer,
configuration) belong to the model of that repository.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from prebake.adopt.loads import FAILED, Load
from prebake.baked import hub
from prebake.documents.messages import reason
from prebake.documents.table import Table
from prebake.errors import PrebakeError

KEYS = ("file", "key", "variant", "arguments", "quantize")
"""What a load's detail and a table of `models.toml` have in common."""
_HARMLESS = frozenset({"languages", "revision"})
"""Details that stand in the source."""
_SNAPSHOT = re.compile(
    r"path:(?:.*/)?models--([\w.-]+?)(?:--([\w.-]+))?/snapshots/([0-9a-f]{40})(?:/([^/].*)?)?", re.ASCII
)


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One model that the service loaded, or one load that cannot be baked."""

    function: str
    """Library and function, for messages: `transformers: BertModel.from_pretrained`."""
    uri: str | None
    """The source as in `models.toml`; None if it is unknown."""
    class_: str | None
    """None for single files of a repository."""
    dtype: str | None = None
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Further keys of the table."""
    loads: int = 1
    seconds: float = 0.0
    """The longest of its loads: several processes load at the same time."""
    obstacle: str | None = None
    """Why it cannot be baked."""
    failed: str | None = None
    """Why all its loads failed."""
    unresolved: str | None = None
    """Why its revision is not pinned."""
    asked: str | None = None
    """The branch or tag by which the service asks for a repository; None if it names the commit."""

    @property
    def subject(self) -> str:
        """The source, or the function where it is unknown."""
        return self.uri or self.function

    def to_dict(self) -> dict[str, Any]:
        return {"source": self.uri, "class": self.class_, "dtype": self.dtype, "keys": dict(self.keys),
                "function": self.function, "loads": self.loads, "seconds": round(self.seconds, 3),
                "obstacle": self.obstacle, "failed": self.failed, "unresolved": self.unresolved}  # fmt: skip


def read_loads(path: Path) -> list[Load]:
    """The loads in a file of JSON lines; none if it does not exist. Raises PrebakeError for a line that is no load."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        raise PrebakeError(f"{path}: cannot read what the service loaded: {reason(error)}") from error
    loads = []
    for number, line in enumerate(lines, 1):
        try:
            document = json.loads(line)
        except ValueError as error:
            raise PrebakeError(f"{path}:{number}: is not a load: {error}") from error
        loads.append(Load.from_table(Table(document, f"{path}:{number}", PrebakeError)))
    return loads


def findings_of(loads: Iterable[Load], base: Path) -> list[Finding]:
    """One finding for each distinct model, in the order of the first load. Paths become relative to `base`."""
    merged: dict[str, Finding] = {}
    for load in loads:
        found = _finding(load, base)
        if load.outcome == FAILED:
            found = replace(found, obstacle=None, failed=load.reason)
        identity = [found.uri or found.function, found.class_, found.dtype, dict(found.keys), found.obstacle,
                    found.asked]  # fmt: skip
        key = json.dumps([*identity, found.failed], sort_keys=True)
        before = merged.get(key)
        merged[key] = found if before is None else _sum(before, found)
    succeeded = {_repository(found) for found in merged.values() if found.failed is None}
    kept = [found for found in merged.values() if found.failed is None or _repository(found) not in succeeded]
    return _without_parts(kept)


def _sum(one: Finding, other: Finding) -> Finding:
    return replace(one, loads=one.loads + 1, seconds=max(one.seconds, other.seconds))


def _finding(load: Load, base: Path) -> Finding:
    strange = sorted(set(load.detail) - set(KEYS) - _HARMLESS)
    obstacle = load.obstacle
    if obstacle is None and strange and load.class_ is not None:
        given = ", ".join(f"{key}={load.detail[key]!r}" for key in strange)
        obstacle = f"models.toml has no key for {given}"
    if obstacle is None and load.uri is None:
        obstacle = "its source is unknown"
    uri, file = _source(load.uri, base)
    return Finding(
        function=f"{load.library}: {load.function}",
        uri=uri,
        class_=load.class_,
        dtype=load.dtype,
        keys={key: value for key in KEYS if (value := load.detail.get(key, file.get(key))) not in (None, {}, [])},
        seconds=load.seconds,
        obstacle=obstacle,
        asked=_asked(load),
    )


def _asked(load: Load) -> str | None:
    if load.uri is None or not load.uri.startswith(hub.URI):
        return None
    revision = load.detail.get("revision")
    return revision if isinstance(revision, str) else hub.name_in(load.uri)


def _source(uri: str | None, base: Path) -> tuple[str | None, dict[str, str]]:
    """The source as `models.toml` in the folder `base` spells it, and what else the table needs for it.

    A snapshot in the hub's cache is its repository; a single file is its folder, and the key `file`.
    """
    if uri is None or not uri.startswith("path:"):
        return uri, {}
    if found := _SNAPSHOT.fullmatch(uri):
        repo = "/".join(filter(None, (found[1], found[2])))
        return f"hf:{repo}@{found[3]}", {"file": found[4]} if found[4] else {}
    path = Path(uri.removeprefix("path:"))
    if path.is_file():
        return f"path:{os.path.relpath(path.parent, base)}", {"file": path.name}
    return f"path:{os.path.relpath(path, base)}", {}


def _without_parts(findings: Sequence[Finding]) -> list[Finding]:
    """Without the single files of sources that have a finding with a class; those of others are merged by source."""
    whole = {_repository(finding) for finding in findings if finding.class_ is not None and finding.failed is None}
    kept: list[Finding] = []
    parts: dict[str, Finding] = {}
    for finding in findings:
        if finding.class_ is not None or finding.uri is None or finding.failed is not None:
            kept.append(finding)
        elif _repository(finding) not in whole and finding.uri not in parts:
            parts[finding.uri] = replace(
                finding, keys={}, obstacle=finding.obstacle or "single files, and no load of a model"
            )
    return [*kept, *parts.values()]


def _repository(finding: Finding) -> str:
    """The source without its revision: a file may have been asked for without one."""
    uri = finding.uri or finding.function
    return uri.partition("@")[0] if uri.startswith("hf:") else uri
