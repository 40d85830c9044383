"""Writes findings as tables of `models.toml`: new tables are added at the end, and what is there stays as it is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import tomli_w

from prebake.baked import hub
from prebake.documents import toml
from prebake.errors import ConfigError
from prebake_build.scanning.findings import KEYS, Finding

HEAD = "# The models of this service, as `prebake scan` saw it load them.\n"
_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True, kw_only=True)
class Merged:
    """`models.toml` with the findings."""

    text: str
    named: Mapping[int, str]
    """Number of a finding → the name of its table, for those that have one."""
    added: Sequence[str]
    """Names of the new tables."""
    notes: Sequence[str]
    """What the user should look at, one sentence each."""


def merge(text: str, findings: Sequence[Finding], where: str) -> Merged:
    """The text with a table for each finding that has none, and a comment for each that cannot be baked.

    Raises ConfigError, which begins with `where`, if the text is not TOML, or tables cannot be added to it; so without
    findings, too.
    """
    tables = _tables(text, where)
    names = set(tables)
    named: dict[int, str] = {}
    used: dict[str, str | None] = {}
    added: list[str] = []
    blocks: list[str] = []
    notes: list[str] = []
    for number, finding in enumerate(findings):
        if finding.failed is not None:
            notes.append(f"{finding.subject}: its load failed: {finding.failed}")
            continue
        if finding.obstacle is not None:
            comment = _obstacle(finding)
            notes.append(f"{finding.subject}: cannot be baked: {finding.obstacle}")
            if comment not in text and comment not in blocks:
                blocks.append(comment)
            continue
        table = table_of(finding)
        name = next((name for name, there in tables.items() if _covers(there, table, finding)
                     and used.get(name, finding.uri) == finding.uri), None)  # fmt: skip
        if name is None:
            notes += _other_revisions(tables, table)
            name = propose(finding, names)
            names.add(name)
            tables[name] = table
            added.append(name)
            blocks.append(_block(name, table, finding))
        elif name not in added:
            notes += _missing_name(name, tables[name], finding)
        named[number] = name
        used[name] = finding.uri  # a source without a revision stands for one of two revisions
        if finding.unresolved is not None:
            notes.append(f"{finding.subject}: is not pinned: {finding.unresolved}")
    return Merged(text=_joined(text, blocks), named=named, added=added, notes=list(dict.fromkeys(notes)))


def table_of(finding: Finding) -> dict[str, Any]:
    """The finding's table. The class of EasyOCR is left out: its sources have only one."""
    table: dict[str, Any] = {"source": finding.uri}
    if finding.class_ is not None and not (finding.uri or "").startswith("easyocr:"):
        table["class"] = finding.class_
    if finding.dtype in _DTYPES and not (finding.uri or "").startswith("easyocr:"):
        table["dtype"] = finding.dtype
    return table | dict(sorted(finding.keys.items()))


def propose(finding: Finding, taken: Iterable[str]) -> str:
    """A valid model name after the source: the repository, the file or the folder; unique by a number."""
    scheme, _, rest = (finding.uri or finding.function).partition(":")
    rest = rest.partition("@")[0] if scheme == "hf" else rest.partition("#")[0]
    last = PurePosixPath(rest).name or scheme
    if scheme == "easyocr":
        last = f"ocr-{rest}"
    elif scheme == "package":
        last = f"{PurePosixPath(rest).parts[0]}-{PurePosixPath(rest).stem}"
    elif scheme not in ("hf", "path"):
        last = PurePosixPath(last.partition("?")[0]).stem
    name = re.sub(r"[^a-z0-9._-]+", "-", last.lower()).strip("._-")[:56].strip("._-") or "model"
    known = set(taken)
    return next(
        found
        for number in range(1, len(known) + 2)
        if (found := f"{name}-{number}" if number > 1 else name) not in known
    )


def _tables(text: str, where: str) -> dict[str, Mapping[str, Any]]:
    try:
        models = toml.loads(text).get("models", {})
    except toml.TOMLDecodeError as error:
        raise ConfigError(f"{where}: is not TOML: {error}") from error
    if not isinstance(models, dict) or not all(isinstance(table, dict) for table in models.values()):
        raise ConfigError(f"{where}: models: expected a table [models.NAME] for each model")
    new = "x" * (1 + max(map(len, models), default=0))
    try:
        toml.loads(_joined(text, [f"[models.{new}]\n"]))
    except toml.TOMLDecodeError as error:  # an inline table is closed
        raise ConfigError(
            f"{where}: cannot take a table [models.NAME] at its end: write `models` as tables [models.NAME]"
        ) from error
    return models


def _covers(there: Mapping[str, Any], table: Mapping[str, Any], finding: Finding) -> bool:
    """Whether a table declares this model already: a class or dtype that it leaves out is inferred from the same files,
    and a source without a revision means any. So does a load whose commit is not known."""
    same_source = there.get("source") in _spellings(table["source"]) or (
        finding.unresolved is not None and _may_mean(table["source"], there.get("source"))
    )
    same_class = "class" not in there or "class" not in table or there["class"] == table["class"]
    dtype = there.get("dtype", "source")
    same_dtype = dtype == table.get("dtype", "source") or "dtype" not in table
    return same_source and same_class and same_dtype and all(there.get(key) == table.get(key) for key in KEYS)


def _spellings(uri: str) -> set[str]:
    """The source, and what may stand for it: without the commit, without the name, without both."""
    if not uri.startswith(hub.URI):
        return {uri}
    repo, revision = hub.split(uri)
    names = [name for name in (hub.name_in(uri), revision) if name is not None]
    return {uri, hub.URI + repo, *(f"{hub.URI}{repo}@{name}" for name in names)}


def _may_mean(uri: str, declared: object) -> bool:
    """Whether a source without a commit may be the declared one, which has it."""
    if not isinstance(declared, str) or _repository(declared) != _repository(uri):
        return False
    name = hub.name_in(uri)
    return hub.name_in(declared) == name or (hub.name_in(declared) is None and name == hub.DEFAULT_BRANCH)


def _missing_name(name: str, there: Mapping[str, Any], finding: Finding) -> list[str]:
    """A note if a table of the file has the commit, and not the name by which the service asks for it."""
    uri = finding.uri or ""
    declared = there["source"]
    if not uri.startswith(hub.URI) or hub.name_in(uri) in (None, hub.DEFAULT_BRANCH, hub.name_in(declared)):
        return []
    return [f'{declared}: the service asks for it as {hub.name_in(uri)}: write source = "{uri}" in [models.{name}]']


def _repository(uri: str) -> str:
    return uri.partition("@")[0] if uri.startswith("hf:") else uri


def _other_revisions(tables: Mapping[str, Mapping[str, Any]], table: Mapping[str, Any]) -> list[str]:
    """A note if another table has the same repository and class at another revision."""
    repository = _repository(table["source"])
    others = [
        name for name, there in tables.items()
        if isinstance(there.get("source"), str) and there["source"] != table["source"]
        and repository.startswith("hf:") and _repository(there["source"]) == repository
        and there.get("class") == table.get("class")
    ]  # fmt: skip
    return [f"{repository}: is declared at another revision too ({', '.join(others)}): bakes both"] if others else []


def _block(name: str, table: Mapping[str, Any], finding: Finding) -> str:
    comments = ""
    if finding.unresolved is not None:
        comments = "# Not pinned: the hub did not tell the commit. `prebake lock` will.\n"
    if (finding.uri or "").startswith("path:.."):
        comments += "# Outside of this folder: an image build needs it inside its context.\n"
    return comments + tomli_w.dumps({"models": {name: dict(table)}})


def _obstacle(finding: Finding) -> str:
    what = f"{finding.uri} ({finding.class_})" if finding.uri and finding.class_ else finding.subject
    return f"# Not baked: {_one_line(what)}: {_one_line(finding.obstacle or '')}\n"


def _one_line(text: str) -> str:
    return " ".join("".join(char if char.isprintable() else " " for char in text).split())


def _joined(text: str, blocks: Sequence[str]) -> str:
    if not blocks:
        return text
    before = text if not text or text.endswith("\n") else text + "\n"
    return "\n".join([before or HEAD, *blocks])
