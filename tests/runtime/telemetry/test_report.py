"""A timeline drawn for a person, and as Chrome's trace format."""

from __future__ import annotations

import json

from prebake.telemetry.report import WIDTH, chrome_trace, memory_lines, text
from prebake.telemetry.timeline import Memory, Span, Timeline

MEMORY = Memory(rss=500_000_000, anonymous=300_000_000, file=200_000_000, peak_rss=600_000_000,
                minor_faults=12_345, major_faults=7)  # fmt: skip


def timeline() -> Timeline:
    spans = Timeline()
    spans.spans += [
        Span(name="map", model="caption", start=1.0, end=1.5, thread="prebake-caption", depth=1),
        Span(name="load", model="caption", start=1.0, end=3.0, thread="prebake-caption", depth=0),
        Span(name="import", model=None, start=0.5, end=1.0, thread="MainThread", depth=0),
    ]
    spans.marks |= {"ready": 3.0, "first answer": 4.0}
    spans.memory |= {"ready": MEMORY}
    return spans


def test_the_table_draws_each_span_on_one_axis() -> None:
    assert text(timeline()) == (
        "phase         model    start  seconds\n"
        "import                 0.500    0.500       █████\n"
        "load          caption  1.000    2.000            ████████████████████\n"
        "  map         caption  1.000    0.500            █████\n"
        "ready                  3.000                                         ◆\n"
        "first answer           4.000                                                  ◆\n"
        "\n"
        "memory, MB  resident  anonymous  file  peak  faults  from disk\n"
        "ready            500        300   200   600  12,345          7\n"
    )


def test_an_empty_timeline_is_a_table_all_the_same() -> None:
    assert text(Timeline()).startswith("phase  model  start  seconds")
    assert memory_lines({}) == []


def test_no_drawing_is_wider_than_the_axis() -> None:
    for line in text(timeline()).split("\n\n")[0].splitlines()[1:]:
        assert len(line) <= len("first answer  caption  0.500    0.500  ") + WIDTH


def test_the_trace_is_what_chrome_opens() -> None:
    document = json.loads(json.dumps(chrome_trace(timeline())))
    assert document.keys() == {"traceEvents", "displayTimeUnit"}
    events = document["traceEvents"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["ph"] == "M"}
    assert sorted(names.values()) == ["MainThread", "prebake-caption"]
    spans = [event for event in events if event["ph"] == "X"]
    assert [(event["name"], event["ts"], event["dur"], event["cat"]) for event in spans] == [
        ("import", 500_000.0, 500_000.0, "process"),
        ("load", 1_000_000.0, 2_000_000.0, "caption"),
        ("map", 1_000_000.0, 500_000.0, "caption"),
    ]
    assert names[spans[1]["tid"]] == "prebake-caption"
    marks = [event for event in events if event["ph"] == "i"]
    assert [(event["name"], event["ts"], event["s"]) for event in marks] == [
        ("ready", 3_000_000.0, "p"), ("first answer", 4_000_000.0, "p"),
    ]  # fmt: skip
    assert len({event["pid"] for event in events}) == 1
