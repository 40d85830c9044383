"""`rules.toml`, typed, and its patterns."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from fnmatch import translate
from functools import cache
from importlib.resources import files
from typing import Literal, cast, get_args

from prebake.documents import toml
from prebake.documents.table import Table
from prebake.errors import ConfigError

Action = Literal["remove", "uncompile", "strip"]


class Patterns:
    """Paths relative to site-packages; in a pattern, `*` also stands for `/`."""

    def __init__(self, patterns: Iterable[str]) -> None:
        self.patterns = tuple(patterns)
        self._regex = re.compile("|".join(map(translate, self.patterns)) or r"(?!)")

    def match(self, path: str) -> bool:
        return self._regex.match(path) is not None


@dataclass(frozen=True, kw_only=True, slots=True)
class Rule:
    """One entry of the file, which says what each key means."""

    name: str
    action: Action
    package: Patterns
    paths: Patterns
    besides: Patterns | None
    reason: str
    breaks: str
    unless_imported: bool
    unless_mentioned: re.Pattern[bytes] | None
    unless_program: tuple[str, ...]
    unless_path: Patterns | None
    if_path: Patterns | None

    def matches(self, path: str) -> bool:
        """Whether the rule names the path, conditions aside."""
        return self.paths.match(path) and not (self.besides is not None and self.besides.match(path))


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """All rules, in the order in which they are tried."""

    keep: Patterns
    rules: tuple[Rule, ...]


@cache
def read_rules() -> Rules:
    """The rules that this package ships."""
    text = (files(__package__) / "rules.toml").read_text(encoding="utf-8")
    table = Table(toml.loads(text), "rules.toml", ConfigError)
    keep = table.table("keep")
    keep.take("reason", str)
    found = Rules(keep=Patterns(keep.strings("paths")), rules=table.items("rule", _rule))
    keep.finish()
    table.finish()
    return found


def _rule(table: Table) -> Rule:
    mentioned = table.maybe("unless_mentioned", str)
    rule = Rule(
        name=table.take("name", str),
        action=cast(Action, table.one_of("action", get_args(Action), "remove")),
        package=Patterns([table.take("package", str, "*")]),
        paths=Patterns(table.strings("paths")),
        besides=_optional(table, "besides"),
        reason=table.take("reason", str),
        breaks=table.take("breaks", str),
        unless_imported=table.take("unless_imported", bool, False),
        unless_mentioned=re.compile(mentioned.encode()) if mentioned else None,
        unless_program=table.strings("unless_program", []),
        unless_path=_optional(table, "unless_path"),
        if_path=_optional(table, "if_path"),
    )
    table.finish()
    return rule


def _optional(table: Table, key: str) -> Patterns | None:
    patterns = table.strings(key, [])
    return Patterns(patterns) if patterns else None
