"""What a scan tells: a line for each model with what its load took, for people and as JSON."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from prebake.documents.columns import columns
from prebake_build.scanning.findings import Finding
from prebake_build.scanning.tables import Merged
from prebake_build.scanning.watch import Seen


def text(seen: Seen, findings: Sequence[Finding], merged: Merged) -> str:
    """A table of the loads, and what share of the start they took."""
    rows: list[tuple[str, ...]] = [("model", "source", "class", "loads", "seconds", "share")]
    for number, finding in enumerate(findings):
        rows.append((merged.named.get(number, "-"), finding.subject, finding.class_ or "", str(finding.loads),
                     f"{finding.seconds:.2f}", _share(finding.seconds, seen)))  # fmt: skip
    return "\n".join([*columns(rows, right=(3, 4, 5)), "", summary(seen, findings)])


def summary(seen: Seen, findings: Sequence[Finding]) -> str:
    """Where the start's time went, in one sentence."""
    bakeable = sum(finding.seconds for finding in findings if finding.obstacle is None and finding.failed is None)
    ended = seen.told is None or seen.told.startswith("it ended")
    until = f"ran for {seen.seconds:.2f} s" if ended else f"was ready after {seen.seconds:.2f} s ({seen.told})"
    if seen.answered is not None:
        until += f" and had answered after {seen.answered:.2f} s"
    return f"The service {until}; loads that baking shortens took {bakeable:.2f} s, {_share(bakeable, seen)} of it."


def _share(seconds: float, seen: Seen) -> str:
    whole = seen.seconds if seen.answered is None else seen.answered
    return f"{100 * min(seconds / max(whole, 1e-9), 1):.0f} %"


def document(seen: Seen, findings: Sequence[Finding], merged: Merged) -> dict[str, Any]:
    """The same as JSON values; times in seconds."""
    return {
        "format": 1,
        "seconds": round(seen.seconds, 3),
        "ready": seen.told,
        "answered": None if seen.answered is None else round(seen.answered, 3),
        "models": [{"name": merged.named.get(number), **finding.to_dict()} for number, finding in enumerate(findings)],
        "numba": [entry.line for entry in seen.compiled.entries],
        "added": list(merged.added),
        "notes": list(merged.notes),
        "problems": list(seen.problems),
    }
