"""Decides, for every file of an environment, which rule takes it; changes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from prebake_build.slimming.elf import Cut, find_cut
from prebake_build.slimming.imports import imported
from prebake_build.slimming.installed import Distribution, byte_code_of, files_of, read_distributions
from prebake_build.slimming.rules import Patterns, Rule, Rules


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One file that a rule takes. Paths are relative to site-packages."""

    path: str
    rule: Rule
    package: str
    bytes: int
    """What the environment gets smaller by, a module's byte code included."""
    cut: Cut | None = None
    """For the action `strip`."""


@dataclass(slots=True)
class Plan:
    """All changes of one environment."""

    site: Path
    distributions: list[Distribution]
    size: int
    """Bytes of all files that packages list, with byte code."""
    changes: list[Change] = field(default_factory=list)
    spared: dict[str, int] = field(default_factory=dict)
    """Rule → files that it matched, but that a condition or the caller keeps."""


def make_plan(
    site: Path, rules: Rules, *, keep: Iterable[str] = (), which: Callable[[str], object] = shutil.which
) -> Plan:
    """What the rules take out of the environment. `keep`: patterns of paths that stay; `which` finds programs.

    Raises DocumentError for a RECORD that cannot be read.
    """
    distributions = read_distributions(site)
    found = {path: one.name for one in distributions for path in files_of(one, site)}
    size = sum(_size((path, *byte_code_of(path, site)), site) for path in found)
    plan = Plan(site=site, distributions=distributions, size=size)
    kept = Patterns([*rules.keep.patterns, *keep])
    active = [rule for rule in rules.rules if _applies(rule, found, which)]
    removing = [rule for rule in active if rule.action == "remove"]
    taken = _matches(found, removing, kept)
    for path in _spared(taken, found, site):
        rule = taken.pop(path)
        plan.spared[rule.name] = plan.spared.get(rule.name, 0) + 1
    staying = {path: package for path, package in found.items() if path not in taken}
    taken |= _matches(staying, [rule for rule in active if rule not in removing], kept)
    for path, rule in sorted(taken.items()):
        _add(plan, path, rule, found[path])
    return plan


def _matches(files: Mapping[str, str], rules: Sequence[Rule], kept: Patterns) -> dict[str, Rule]:
    """The first rule that matches each file. `files`: path → package."""
    taken = {}
    for path, package in files.items():
        if kept.match(path):
            continue
        rule = next((rule for rule in rules if rule.package.match(package) and rule.matches(path)), None)
        if rule is not None:
            taken[path] = rule
    return taken


def _applies(rule: Rule, found: Iterable[str], which: Callable[[str], object]) -> bool:
    if any(which(program) for program in rule.unless_program):
        return False
    if rule.unless_path is not None and any(map(rule.unless_path.match, found)):
        return False
    return rule.if_path is None or any(map(rule.if_path.match, found))


def _spared(taken: dict[str, Rule], found: dict[str, str], site: Path) -> set[str]:
    """Files that stay because modules that stay import them, or mention them. `found`: path → package."""
    spared = _mentioned(taken, found, site)
    candidates = [path for path, rule in taken.items()
                  if rule.unless_imported and path.endswith(".py") and path not in spared]  # fmt: skip
    others = [path for path in found if path.endswith(".py") and (path not in taken or path in spared)]
    kept = imported(candidates, others, lambda path: (site / path).read_bytes())
    folders = {str(PurePosixPath(path).parent) for path in kept}
    for path, rule in taken.items():
        if rule.unless_imported and not path.endswith(".py") and _beside(path, folders, rule):
            kept.add(path)
    return spared | kept


def _beside(path: str, folders: set[str], rule: Rule) -> bool:
    """Whether one of the folders, which modules are kept in, is above the path, and below what the rule names."""
    return any(str(above) in folders and rule.paths.match(f"{above}/") for above in PurePosixPath(path).parents)


def _mentioned(taken: dict[str, Rule], found: dict[str, str], site: Path) -> set[str]:
    spared: set[str] = set()
    wanted: dict[tuple[str, str], list[str]] = {}
    rules = {rule.name: rule for rule in taken.values()}
    for path, rule in taken.items():
        if rule.unless_mentioned is not None:
            wanted.setdefault((rule.name, found[path]), []).append(path)
    for (name, package), paths in wanted.items():
        mentioned = rules[name].unless_mentioned
        modules = (path for path, owner in found.items()
                   if owner == package and path.endswith(".py") and path not in taken)  # fmt: skip
        if mentioned is not None and any(mentioned.search((site / path).read_bytes()) for path in modules):
            spared.update(paths)
    return spared


def _add(plan: Plan, path: str, rule: Rule, package: str) -> None:
    if rule.action == "strip":
        cut = None if (plan.site / path).is_symlink() else find_cut(plan.site / path)
        if cut is not None:
            plan.changes.append(Change(path=path, rule=rule, package=package, bytes=cut.saved, cut=cut))
    elif gone := gone_of(path, rule, plan.site):
        plan.changes.append(Change(path=path, rule=rule, package=package, bytes=_size(gone, plan.site)))


def gone_of(path: str, rule: Rule, site: Path) -> list[str]:
    """The files that go: the file, unless the rule takes byte code alone, and a module's byte code."""
    return [*([path] if rule.action == "remove" else []), *byte_code_of(path, site)]


def _size(paths: Iterable[str], site: Path) -> int:
    return sum((site / path).lstat().st_size for path in paths)
