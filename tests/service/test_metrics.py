"""Figures are in Prometheus' text format, whatever the names in them."""

from __future__ import annotations

import re
from http import HTTPStatus

import pytest

from helpers.serving import Process, request
from image_analyzer.metrics import Counts, text
from prebake.telemetry.status import State, Status
from prebake.telemetry.timeline import Timeline

_SAMPLE = re.compile(r'([a-z_]+)(?:\{((?:[a-z_]+="(?:[^"\\\n]|\\["\\n])*",?)*)\})? (-?[0-9.e+-]+)')


def parse(document: str) -> dict[str, dict[str, float]]:
    """Name → labels → value. Holds every line against the format, and each sample against its family's head."""
    families: dict[str, str] = {}
    found: dict[str, dict[str, float]] = {}
    assert document.endswith("\n")
    for line in document.splitlines():
        if line.startswith("# HELP "):
            continue
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split(" ")
            assert name not in families
            families[name] = kind
            continue
        sample = _SAMPLE.fullmatch(line)
        assert sample, line
        assert sample[1] in families
        assert (sample[1].endswith("_total")) == (families[sample[1]] == "counter")
        labels = found.setdefault(sample[1], {})
        assert (sample[2] or "") not in labels
        labels[sample[2] or ""] = float(sample[3])
    return found


def figures(*statuses: Status, ready: bool = True, counts: Counts | None = None) -> dict[str, dict[str, float]]:
    timeline = Timeline(marks={"port open": 0.5, "ready": 2.25})
    return parse(text(statuses, timeline, counts or Counts(), ready=ready))


LOADED = Status(name="caption", state=State.READY, required=True, tier="mapped", seconds=0.75)
FELL_BACK = Status(name="ocr", state=State.READY, required=True, tier="read", seconds=1.5, fallback_reason="mapped: no")
IDLE = Status(name="florence", state=State.IDLE, required=False)


def test_each_model_is_in_exactly_one_state() -> None:
    states = figures(LOADED, IDLE)["prebake_model_state"]
    assert [labels for labels, value in states.items() if value] == [
        'model="caption",state="ready"', 'model="florence",state="idle"'
    ]  # fmt: skip
    assert len(states) == 2 * len(State)


def test_loads_are_told_with_their_tier_and_whether_a_faster_one_was_left() -> None:
    found = figures(LOADED, FELL_BACK, IDLE)
    assert found["prebake_model_load_seconds"] == {
        'model="caption",tier="mapped"': 0.75, 'model="ocr",tier="read"': 1.5
    }  # fmt: skip
    assert found["prebake_model_fallback"] == {'model="caption"': 0, 'model="ocr"': 1}


@pytest.mark.parametrize("ready", [True, False])
def test_readiness_is_one_or_zero(ready: bool) -> None:
    assert figures(ready=ready)["prebake_ready"] == {"": ready}


def test_the_moments_of_the_start_and_the_memory_are_told() -> None:
    found = figures()
    assert found["prebake_start_seconds"] == {'moment="port open"': 0.5, 'moment="ready"': 2.25}
    assert found["prebake_memory_bytes"]['kind="peak_resident"'] > 10_000_000


def test_requests_are_counted_though_they_fail() -> None:
    counts = Counts()
    with counts.time("/ocr"):
        pass
    with counts.time("/ocr") as outcome:
        outcome.status = HTTPStatus.BAD_REQUEST
    with pytest.raises(ZeroDivisionError), counts.time("/ocr"):
        raise ZeroDivisionError
    assert figures(counts=counts)["prebake_requests_total"] == {
        'path="/ocr",status="200"': 2, 'path="/ocr",status="400"': 1
    }  # fmt: skip


def test_quotes_backslashes_and_line_ends_in_a_name_are_escaped() -> None:
    odd = Status(name='a"b\\c\nd', state=State.READY, required=True)
    assert figures(odd)["prebake_model_fallback"] == {r'model="a\"b\\c\nd"': 0}


def test_what_the_service_serves_is_in_the_format(running: Process) -> None:
    status, headers, body = request(running.url, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    assert parse(body.decode())["prebake_ready"] == {"": 1}
