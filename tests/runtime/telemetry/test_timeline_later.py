"""A timeline keeps the spans of the start one by one, and sums of those that follow: its memory is bounded."""

from __future__ import annotations

import json
import threading

import pytest

from helpers.runtime_fakes import python_says
from prebake.telemetry import timeline
from prebake.telemetry.timeline import Timeline


def test_a_decorated_function_that_every_request_calls_takes_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = Timeline()
    monkeypatch.setattr(timeline, "KEPT", 100)

    @spans.span("answer", "caption")
    def answer() -> None:
        pass

    def requests() -> None:
        for _ in range(1000):
            answer()

    threads = [threading.Thread(target=requests) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    with spans.span("rest"):
        pass
    document = json.loads(json.dumps(spans.to_dict()))
    assert len(spans.spans) == len(document["spans"]) == 100
    assert [(each["name"], each["model"], each["count"]) for each in document["later"]] == [
        ("answer", "caption", 3900),
        ("rest", None, 1),
    ]
    for each in document["later"]:
        assert 0 <= each["longest"] <= each["seconds"] <= each["count"] * each["longest"] + 0.001


def test_names_without_end_are_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    spans = Timeline()
    monkeypatch.setattr(timeline, "KEPT", 1)
    monkeypatch.setattr(timeline, "SUMS", 3)
    for number in range(50):
        with spans.span(f"request {number}"):
            pass
    assert [(each["name"], each["count"]) for each in spans.to_dict()["later"]] == [
        ("(other spans)", 46),
        ("request 1", 1),
        ("request 2", 1),
        ("request 3", 1),
    ]


def test_a_start_of_usual_size_has_no_sums() -> None:
    spans = Timeline()
    with spans.span("load", "caption"):
        pass
    assert spans.to_dict()["later"] == []


def test_a_child_that_is_forked_while_another_thread_adds_a_span_has_spans_of_its_own() -> None:
    said = python_says(
        "import faulthandler, os, threading\n"
        "from prebake.telemetry import timeline\n"
        "faulthandler.dump_traceback_later(30, exit=True)\n"
        "held, go_on = threading.Event(), threading.Event()\n"
        "def adding():\n"
        "    with timeline.process._lock: held.set(); go_on.wait(60)\n"
        "threading.Thread(target=adding).start()\n"
        "held.wait(60)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    with timeline.span('mine'): pass\n"
        "    print([span['name'] for span in timeline.process.to_dict()['spans']], flush=True)\n"
        "    os._exit(0)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "go_on.set()\n"
        "print(code)"
    )
    assert said.splitlines() == ["['mine']", "0"]
