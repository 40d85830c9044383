"""Limits for a start, and their comparison with a measured start.

A budget is a TOML file; every key is optional::

    ready = 3.0                  # seconds until all required models are loaded
    first_answer = 5.0           # seconds until the first answer
    peak_memory = "1.5 GB"       # maximum resident memory
    shorter = 30                 # minimum reduction of ready against the baseline, in per cent
    memory_above = 20            # maximum increase of peak memory over the baseline, in per cent
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from prebake.documents import toml
from prebake.documents.messages import reason
from prebake.documents.sizes import parse_size
from prebake.documents.table import Table, canonical_json, read_json
from prebake.errors import ConfigError
from prebake.telemetry import timeline

BASELINE_FORMAT = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Time and memory of one start."""

    ready: float
    """Seconds from the birth of the process until the required models were loaded."""
    first_answer: float | None
    """Seconds from the birth until the first answer, or None if there was no request."""
    peak_memory: int
    """Bytes, resident."""

    @classmethod
    def of(cls, spans: timeline.Timeline) -> Start:
        """The start of this process. Raises KeyError if it is not ready yet."""
        return cls(
            ready=spans.marks[timeline.READY],
            first_answer=spans.marks.get(timeline.FIRST_ANSWER),
            peak_memory=max(memory.peak_rss for memory in spans.memory.values()),
        )

    @classmethod
    def read(cls, path: Path) -> Start:
        """A start recorded by `prebake check --save` or `prebake measure`. Raises DocumentError."""
        table = read_json(path, BASELINE_FORMAT, "recorded start")
        start = cls(
            ready=table.take("ready", float),
            first_answer=table.maybe("first_answer", float),
            peak_memory=table.take("peak_memory", int),
        )
        table.finish()
        for name, value in (("ready", start.ready), ("peak_memory", start.peak_memory)):
            if value <= 0:
                raise table.fail(name, f"{value:g} is not above 0")
        return start

    @property
    def text(self) -> str:
        """The recorded start as canonical JSON."""
        return canonical_json({"format": BASELINE_FORMAT, **self.to_dict()})

    def to_dict(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, kw_only=True, slots=True)
class Budget:
    """Limits for a start; None means no limit."""

    ready: float | None = None
    """Seconds."""
    first_answer: float | None = None
    """Seconds."""
    peak_memory: int | None = None
    """Bytes."""
    shorter: float | None = None
    """Minimum reduction of `ready` against the baseline, in per cent."""
    memory_above: float | None = None
    """Maximum increase of peak memory over the baseline, in per cent."""

    @classmethod
    def read(cls, path: Path) -> Budget:
        """Read a budget file. Raises ConfigError, which names the path inside the file."""
        try:
            data = toml.loads(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{path}: cannot read this budget: {reason(error)}") from error
        except ValueError as error:  # TOMLDecodeError, or a number with more digits than Python reads
            raise ConfigError(f"{path}: this budget is not TOML: {error}") from error
        return cls.from_table(Table(data, str(path), ConfigError))

    @classmethod
    def from_table(cls, table: Table) -> Budget:
        """The budget in a table of its own. Raises the table's error for a key that is unknown or has a wrong value."""
        numbers = {name: table.maybe(name, float) for name in ("ready", "first_answer", "shorter", "memory_above")}
        size = table.maybe("peak_memory", str)
        table.finish()
        for name, value in numbers.items():
            if value is not None and not value >= 0:
                raise table.fail(name, f"{value:g} is {'negative' if value < 0 else 'not a limit'}")
        return cls(peak_memory=None if size is None else parse_size(size, table.at("peak_memory")), **numbers)

    def with_limits(self, **limits: float | None) -> Budget:
        """The budget with every given limit that is not None replaced."""
        changes: Mapping[str, Any] = {name: value for name, value in limits.items() if value is not None}
        return replace(self, **changes)

    @property
    def needs_baseline(self) -> bool:
        return self.shorter is not None or self.memory_above is not None


def exceeded(start: Start, budget: Budget, baseline: Start | None = None) -> list[str]:
    """One sentence for each limit that the start exceeded; empty if it is within the budget.

    Raises ConfigError if the budget has limits relative to a baseline and none is given.
    """
    if budget.needs_baseline and baseline is None:
        raise ConfigError("the budget has limits relative to a baseline: pass its file with --baseline")
    findings = []
    if budget.ready is not None and start.ready > budget.ready:
        findings.append(f"ready after {start.ready:.2f} s, allowed are {budget.ready:g} s")
    if budget.first_answer is not None:
        if start.first_answer is None:
            findings.append(f"no first answer was measured, allowed are {budget.first_answer:g} s")
        elif start.first_answer > budget.first_answer:
            findings.append(f"first answer after {start.first_answer:.2f} s, allowed are {budget.first_answer:g} s")
    if budget.peak_memory is not None and start.peak_memory > budget.peak_memory:
        findings.append(
            f"peak memory {start.peak_memory / 1e6:,.0f} MB, allowed are {budget.peak_memory / 1e6:,.0f} MB"
        )
    return findings + (_against(start, budget, baseline) if baseline else [])


def _against(start: Start, budget: Budget, baseline: Start) -> list[str]:
    findings = []
    if budget.shorter is not None:
        shorter = 100 * (1 - start.ready / baseline.ready)
        if shorter < budget.shorter:
            findings.append(
                f"ready {shorter:.0f} % sooner than the baseline ({start.ready:.2f} s against {baseline.ready:.2f} s), "
                f"expected at least {budget.shorter:g} %"
            )
    if budget.memory_above is not None:
        above = 100 * (start.peak_memory / baseline.peak_memory - 1)
        if above > budget.memory_above:
            findings.append(
                f"peak memory {above:.0f} % above the baseline's ({start.peak_memory / 1e6:,.0f} MB against "
                f"{baseline.peak_memory / 1e6:,.0f} MB), allowed are {budget.memory_above:g} %"
            )
    return findings
