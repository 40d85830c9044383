"""Reports of a start: as a document, as a text table with bars, and in Chrome's trace format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from prebake.documents.columns import columns
from prebake.startup import deferred
from prebake.telemetry import restored
from prebake.telemetry.timeline import READY, Memory, Span, Timeline

if TYPE_CHECKING:
    from prebake.telemetry.budget import Start
    from prebake.telemetry.status import Status

WIDTH = 40
"""Width of the bars, in characters."""


def document(timeline: Timeline, statuses: Iterable[Status], baseline: Start | None = None) -> dict[str, Any]:
    """The content of `/startup` and `prebake check --json`: timeline, models, deferred imports, the ratio to a recorded
    baseline, and, in an image with a snapshot, whether it was used. Times are in seconds, memory in bytes."""
    told = timeline.to_dict()
    told["models"] = {status.name: status.to_dict() for status in statuses}
    told["deferred"] = deferred.report()
    if (snapshot := restored.document()) is not None:
        told["snapshot"] = snapshot
    if baseline is not None:
        ready = timeline.marks.get(READY)
        ratio = round(ready / baseline.ready, 4) if ready is not None else None
        told["baseline"] = baseline.to_dict() | {"ratio": ratio}
    return told


def headline(startup: Mapping[str, Any]) -> str:
    """The result in one sentence."""
    ready, baseline = startup["marks"].get(READY), startup.get("baseline")
    if ready is None:
        return "not ready yet"
    compared = f", {baseline['ratio']:.2f} of the baseline's {baseline['ready']:.2f} s" if baseline else ""
    return f"ready after {ready:.2f} s{compared}"


def text(timeline: Timeline) -> str:
    """The spans in order of their start with a bar on a common time axis, then marks and memory."""
    spans = sorted(timeline.spans, key=lambda span: (span.start, -span.end))
    ends = [span.end for span in spans] + list(timeline.marks.copy().values())
    scale = WIDTH / max([*ends, 0.001])
    rows: list[tuple[str, ...]] = [("phase", "model", "start", "seconds", "")]
    for span in spans:
        rows.append(("  " * span.depth + span.name, span.model or "", f"{span.start:.3f}", f"{span.seconds:.3f}",
                     _bar(span, scale)))  # fmt: skip
    for name, at in sorted(timeline.marks.copy().items(), key=lambda item: item[1]):
        rows.append((name, "", f"{at:.3f}", "", " " * min(int(at * scale), WIDTH - 1) + "◆"))
    lines = columns(rows, right=(2, 3))
    return "\n".join([*lines, "", *memory_lines(timeline.memory.copy()), ""])


def _bar(span: Span, scale: float) -> str:
    begin = min(int(span.start * scale), WIDTH - 1)
    return " " * begin + "█" * max(1, round(span.end * scale) - begin)


MEMORY_KINDS = ("resident", "anonymous", "file", "peak", "faults", "from disk")


def memory_sizes(at: Memory) -> list[str]:
    """The values for `MEMORY_KINDS`: sizes in MB (10⁶ bytes), page faults as counts."""
    sizes = [f"{value / 1e6:,.0f}" for value in (at.rss, at.anonymous, at.file, at.peak_rss)]
    return [*sizes, f"{at.minor_faults:,}", f"{at.major_faults:,}"]


def memory_lines(memory: dict[str, Memory]) -> list[str]:
    """A table of the memory at each mark, as lines."""
    if not memory:
        return []
    rows: list[tuple[str, ...]] = [("memory, MB", *MEMORY_KINDS)]
    rows += [(name, *memory_sizes(at)) for name, at in memory.items()]
    return columns(rows, right=(1, 2, 3, 4, 5, 6))


def chrome_trace(timeline: Timeline) -> dict[str, Any]:
    """The spans in the Trace Event Format for `chrome://tracing` and Perfetto; times in microseconds."""
    told = timeline.to_dict()
    threads = {name: number for number, name in enumerate(dict.fromkeys(span["thread"] for span in told["spans"]))}
    pid = told["pid"]
    events: list[dict[str, Any]] = [
        {"ph": "M", "name": "thread_name", "pid": pid, "tid": number, "args": {"name": name}}
        for name, number in threads.items()
    ]
    events += [
        {
            "ph": "X",
            "name": span["name"],
            "cat": span["model"] or "process",
            "pid": pid,
            "tid": threads[span["thread"]],
            "ts": span["start"] * 1e6,
            "dur": (span["end"] - span["start"]) * 1e6,
            "args": {"model": span["model"]},
        }
        for span in told["spans"]
    ]
    events += [
        {"ph": "i", "name": name, "pid": pid, "tid": 0, "ts": at * 1e6, "s": "p"} for name, at in told["marks"].items()
    ]
    return {"traceEvents": events, "displayTimeUnit": "ms"}
