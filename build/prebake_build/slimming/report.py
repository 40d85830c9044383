"""What a plan takes out, as a table and as JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from prebake.documents.columns import columns
from prebake.documents.sizes import format_size
from prebake_build.slimming.plan import Plan
from prebake_build.slimming.rules import Rule


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """What one rule does."""

    rule: Rule
    files: int
    bytes: int
    packages: dict[str, int]
    """Package → bytes, the largest first."""


def lines_of(plan: Plan) -> list[Line]:
    """One line for each rule that does anything, the largest first."""
    lines = []
    for rule in {change.rule.name: change.rule for change in plan.changes}.values():
        changes = [change for change in plan.changes if change.rule is rule]
        packages: dict[str, int] = {}
        for change in changes:
            packages[change.package] = packages.get(change.package, 0) + change.bytes
        lines.append(
            Line(
                rule=rule,
                files=len(changes),
                bytes=sum(packages.values()),
                packages=dict(sorted(packages.items(), key=lambda item: (-item[1], item[0]))),
            )
        )
    return sorted(lines, key=lambda line: (-line.bytes, line.rule.name))


def table_of(plan: Plan) -> list[str]:
    """Rules with bytes, files and packages, and the sum."""
    lines = lines_of(plan)
    rows = [("bytes", "files", "rule", "packages")]
    rows += [(format_size(line.bytes), f"{line.files:,}", line.rule.name, _shown(list(line.packages)))
             for line in lines]  # fmt: skip
    gone = sum(line.bytes for line in lines)
    text = columns(rows, right=(0, 1)) if lines else []
    return [*text, f"{format_size(plan.size)} of packages, {format_size(gone)} less: {format_size(plan.size - gone)}"]


def _shown(packages: list[str]) -> str:
    more = len(packages) - 3
    return ", ".join(packages if more <= 1 else [*packages[:3], f"and {more} more"])


def document_of(plan: Plan, *, applied: bool) -> dict[str, Any]:
    lines = lines_of(plan)
    gone = sum(line.bytes for line in lines)
    return {
        "site_packages": str(plan.site), "applied": applied, "before": plan.size, "after": plan.size - gone,
        "rules": [
            {"rule": line.rule.name, "action": line.rule.action, "bytes": line.bytes, "files": line.files,
             "packages": line.packages, "reason": line.rule.reason, "breaks": line.rule.breaks}
            for line in lines
        ],
        "spared": plan.spared,
    }  # fmt: skip
