"""Sources that keep the branch or tag by which the service asks for a repository, beside the commit that it got.

`prebake run` finds a model by its commit, or by the name in its source. So a name that the service uses stands there:
`hf:ORG/NAME@NAME@COMMIT`. The default branch is left out where no other commit of the repository could be meant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from prebake.baked import hub
from prebake_build.scanning.findings import Finding


def named(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, which are pinned as far as they can be, with the names that their sources need.

    A commit that is asked for without a revision and by a name is one finding, with the name.
    """
    result = []
    for finding in findings:
        same = [other for other in findings if _same_model(other, finding)]
        rank = max(map(_rank, same))
        if _rank(finding) < rank:
            continue  # counted with the others
        lower = [other for other in same if _rank(other) < rank]
        loads = finding.loads + sum(other.loads for other in lower)
        finding = replace(finding, loads=loads, seconds=max(part.seconds for part in (finding, *lower)))
        by_default = rank == 1 and any(_other_commit(other, finding) for other in findings)
        result.append(_with_name(finding) if rank == 2 or by_default else finding)
    return result


def _rank(finding: Finding) -> int:
    """2: a name belongs into its source; 1: it may be needed, of the default branch; 0: none."""
    if finding.asked is None or _commit(finding) is None or finding.obstacle or finding.failed:
        return 0
    return 1 if finding.asked == hub.DEFAULT_BRANCH else 2


def _same_model(one: Finding, other: Finding) -> bool:
    compared = ("uri", "class_", "dtype", "keys", "function" if one.uri is None else "uri", "obstacle", "failed")
    return all(getattr(one, name) == getattr(other, name) for name in compared)


def _other_commit(one: Finding, other: Finding) -> bool:
    repo = hub.split(other.uri or "")[0]
    return _commit(one) not in (None, _commit(other)) and hub.split(one.uri or "")[0] == repo


def _commit(finding: Finding) -> str | None:
    uri = finding.uri or ""
    revision = hub.split(uri)[1] if uri.startswith(hub.URI) else None
    return revision if revision is not None and hub.COMMIT.fullmatch(revision) else None


def _with_name(finding: Finding) -> Finding:
    repo, commit = hub.split(finding.uri or "")
    return replace(finding, uri=f"{hub.URI}{repo}@{finding.asked}@{commit}")
