"""A rule about packages: what inference never reads of them, by the rules of `prebake slim`."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping

from prebake.documents.sizes import format_size
from prebake_build.images.checks.findings import Finding, Subject, by_layer, paths, total
from prebake_build.images.contents import Entry
from prebake_build.slimming.rules import Rule, read_rules

_INSTALLED = re.compile(r"(?:.*/)?(?:site|dist)-packages/(.+)")
_BYTE_CODE = re.compile(r"(.*)__pycache__/([^/.]+)\.[^/]+\.pyc")
_SHOWN = 4
"""Rules that a message names."""


def dead_weight(subject: Subject) -> Iterator[Finding]:
    """Headers, tests, static libraries and the like: what `prebake slim` removes.

    The conditions that need the text of modules are left out, so a slim image has a little that this counts too.
    """
    if not subject.runs:
        return
    found: dict[str, list[Entry]] = defaultdict(list)
    keep, rules = read_rules().keep, _active(subject)
    for path, entry in subject.contents.files.items():
        installed = _INSTALLED.fullmatch(path)
        if entry.kind != "file" or installed is None:
            continue
        inside = _BYTE_CODE.sub(r"\1\2.py", installed[1])
        rule = None if keep.match(inside) else next((rule for rule in rules if rule.matches(inside)), None)
        if rule is not None:
            found[rule.name].append(entry)
    names = {entry.path: name for name, entries in found.items() for entry in entries}
    for layer, files in by_layer(entry for entries in found.values() for entry in entries).items():
        if total(files) >= subject.rules.dead:
            largest = sorted(files, key=lambda entry: -entry.size)
            yield Finding(
                rule="dead-weight", layer=layer, bytes=total(files), paths=paths(largest),
                message=f"inference never reads {len(files):,} files of packages ({_sums(files, names)})",
                mend="prebake slim PREFIX in the stage that installs them, and COPY the result (prebake init writes "
                "this: SLIM=1); prebake slim --explain has the reasons",
            )  # fmt: skip


def _active(subject: Subject) -> list[Rule]:
    """The rules that remove files and whose conditions the image meets."""
    programs = {posixpath.basename(path) for path in subject.contents.files if "bin" in path.split("/")[-2:-1]}
    installed = [found[1] for path in subject.contents.files if (found := _INSTALLED.fullmatch(path))]
    return [rule for rule in read_rules().rules if rule.action == "remove" and _applies(rule, programs, installed)]


def _applies(rule: Rule, programs: Collection[str], installed: Collection[str]) -> bool:
    if any(program in programs for program in rule.unless_program):
        return False
    if rule.unless_path is not None and any(map(rule.unless_path.match, installed)):
        return False
    return rule.if_path is None or any(map(rule.if_path.match, installed))


def _sums(files: Collection[Entry], names: Mapping[str, str]) -> str:
    sums: dict[str, int] = defaultdict(int)
    for entry in files:
        sums[names[entry.path]] += entry.size
    largest = sorted(sums.items(), key=lambda item: (-item[1], item[0]))
    shown = ", ".join(f"{name} {format_size(size)}" for name, size in largest[:_SHOWN])
    return shown + (f", and {len(largest) - _SHOWN} more rules" if len(largest) > _SHOWN else "")
