"""Figures are in Prometheus' text format, whatever the names in them."""

from __future__ import annotations

from http import HTTPStatus

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from helpers.runtime_fakes import python_says
from helpers.serving import Process, ask, picture, request
from image_analyzer.metrics import BUCKETS, Counts, Figures, exposition
from prebake.telemetry.status import State, Status
from prebake.telemetry.timeline import Timeline


def parse(document: bytes) -> dict[str, dict[str, float]]:
    """Name → labels → value. Holds the text against the format, and each sample against its family's type."""
    found: dict[str, dict[str, float]] = {}
    for family in plain_text(document.decode()):
        assert family.type in ("gauge", "counter", "histogram")
        assert family.documentation
        for sample in family.samples:
            assert sample.name.endswith("_total") == (family.type == "counter")
            labels = ",".join(f'{name}="{value}"' for name, value in sorted(sample.labels.items()))
            assert found.setdefault(sample.name, {}).setdefault(labels, sample.value) == sample.value
    return found


def figures(*statuses: Status, ready: bool = True, counts: Counts | None = None) -> dict[str, dict[str, float]]:
    timeline = Timeline(marks={"port open": 0.5, "ready": 2.25})
    return parse(exposition(Figures(statuses, timeline, counts or Counts(), ready=ready))[0])


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


def test_durations_are_a_histogram_by_path() -> None:
    counts = Counts()
    for seconds in (0.004, 0.005, 0.3, 61):
        counts.add("/ocr", HTTPStatus.OK, seconds)
    counts.add("/ocr", HTTPStatus.SERVICE_UNAVAILABLE)
    found = figures(counts=counts)
    assert found["prebake_requests_total"] == {'path="/ocr",status="200"': 4, 'path="/ocr",status="503"': 1}
    buckets = found["prebake_request_seconds_bucket"]
    assert [float(labels.split('"')[1]) for labels in buckets] == [*BUCKETS, float("inf")]
    assert list(buckets.values()) == [2] * 5 + [2, *[3] * 7, 4]
    assert found["prebake_request_seconds_count"] == {'path="/ocr"': 4}
    assert found["prebake_request_seconds_sum"] == {'path="/ocr"': pytest.approx(61.309)}


def test_quotes_backslashes_and_line_ends_in_a_name_are_escaped() -> None:
    odd = Status(name='a"b\\c\nd', state=State.READY, required=True)
    assert figures(odd)["prebake_model_fallback"] == {'model="a"b\\c\nd"': 0}


def test_open_metrics_is_served_to_those_who_ask_for_it() -> None:
    counts = Counts()
    with counts.time("/ocr"):
        pass
    asked = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3"
    text, kind = exposition(Figures([LOADED], Timeline(), counts, ready=True), asked)
    assert kind.startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
    families = {family.name: family.type for family in parse_open_metrics(text.decode())}  # type: ignore[no-untyped-call]
    assert (families["prebake_requests"], families["prebake_request_seconds"]) == ("counter", "histogram")


def test_counting_does_not_import_the_client() -> None:
    """It takes 70 ms, which a start does not have."""
    script = (
        "import sys; from http import HTTPStatus\n"
        "import image_analyzer.server, image_analyzer.service, image_analyzer.metrics as m\n"
        "m.Counts().add('/ocr', HTTPStatus.OK, 1.0); print('prometheus_client' in sys.modules)"
    )
    assert python_says(script) == "False"


def test_what_the_service_serves_is_in_the_format(running: Process) -> None:
    assert ask(running.url, "/ocr", picture(size=(200, 150)))[0] == 200
    status, headers, body = request(running.url, "/metrics")
    assert (status, headers["Content-Type"]) == (200, "text/plain; version=0.0.4; charset=utf-8")
    found = parse(body)
    assert found["prebake_ready"] == {"": 1}
    assert found["prebake_request_seconds_count"]['path="/ocr"'] >= 1
