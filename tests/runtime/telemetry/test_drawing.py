"""A start drawn: each span where it was, on one axis; whatever models are called, it is text."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from prebake.telemetry.drawing import length, page, startup_page, svg, table

STARTUP: dict[str, Any] = {
    "spans": [
        {"name": "import", "model": None, "start": 0.5, "end": 1.0, "thread": "MainThread", "depth": 0},
        {"name": "load", "model": "caption", "start": 1.0, "end": 3.0, "thread": "t", "depth": 0},
        {"name": "map", "model": "caption", "start": 1.0, "end": 1.004, "thread": "t", "depth": 1},
    ],
    "marks": {"port open": 0.4, "ready": 3.0, "first answer": 4.0},
    "memory": {
        "ready": {"rss": 500_000_000, "anonymous": 300_000_000, "file": 200_000_000, "peak_rss": 600_000_000,
                  "minor_faults": 12_345, "major_faults": 7},
    },
    "models": {
        "caption": {"state": "ready", "required": True, "tier": "read", "fallback_reason": "mapped: <no mmap>",
                    "seconds": 2.0, "error": None},
        "ocr": {"state": "failed", "required": True, "tier": None, "fallback_reason": None, "seconds": None,
                "error": "ocr: gone & lost"},
    },
    "deferred": {"scipy": None, "sympy": "sympy.Symbol"},
    "baseline": {"ready": 6.0, "first_answer": None, "peak_memory": 1, "ratio": 0.5},
}  # fmt: skip


def bars(drawn: str) -> dict[str, tuple[float, float]]:
    """Title → left edge and width of each bar."""
    root = ElementTree.fromstring(drawn)
    return {str(bar.findtext("title")): (float(bar.get("x", "")), float(bar.get("width", "")))
            for bar in root.iter("rect")}  # fmt: skip


def test_bars_begin_and_last_in_proportion_to_their_spans() -> None:
    drawn = bars(svg(STARTUP, "it"))
    (imported, load) = drawn["import: 0.500 s"], drawn["caption load: 2.000 s"]
    assert load[1] == pytest.approx(4 * imported[1], abs=0.25)  # each is drawn to a tenth of a pixel
    assert load[0] == pytest.approx(imported[0] + imported[1], abs=0.25)


def test_spans_too_short_to_see_have_no_row() -> None:
    assert list(bars(svg(STARTUP, "it"))) == ["import: 0.500 s", "caption load: 2.000 s"]


def test_drawings_with_the_same_axis_are_comparable() -> None:
    assert length(STARTUP) == 4.0
    alone, beside = bars(svg(STARTUP, "it")), bars(svg(STARTUP, "it", seconds=8.0))
    assert beside["caption load: 2.000 s"][1] == alone["caption load: 2.000 s"][1] / 2


def test_marks_are_lines_with_their_time_and_the_open_port_is_none() -> None:
    lines = ElementTree.fromstring(svg(STARTUP, "it")).iter("line")
    titles = [title for line in lines if (title := line.findtext("title"))]
    assert titles == ["ready: 3.00 s", "first answer: 4.00 s"]


def test_names_are_text_and_no_markup() -> None:
    wild = STARTUP | {"spans": [STARTUP["spans"][0] | {"name": "<script>", "model": '"&'}], "marks": {"<b>": 1.0}}
    ElementTree.fromstring(svg(wild, '<"it">'))  # raises where it is no XML
    for text in (svg(wild, '<"it">'), page("<t>", "<h>", []), table(["<x>"], [])):
        assert not re.search(r"<(script|b|t|h|x)>", text)


def test_an_empty_timeline_is_drawn_all_the_same() -> None:
    ElementTree.fromstring(svg({"spans": [], "marks": {}}, "nothing"))


def test_the_page_of_a_start_tells_models_memory_deferred_imports_and_the_ratio() -> None:
    told = startup_page(STARTUP)
    assert '<p class="headline">ready after 3.00 s, 0.50 of the baseline&#x27;s 6.00 s</p>' in told
    assert ("<tr><th>caption</th><td>ready</td><td>read</td><td>2.000</td><td>mapped: &lt;no mmap&gt;</td></tr>"
            "<tr><th>ocr</th><td>failed</td><td></td><td></td><td>ocr: gone &amp; lost</td></tr>") in told  # fmt: skip
    assert ("<tr><th>ready</th><td>500</td><td>300</td><td>200</td><td>600</td><td>12,345</td><td>7</td></tr>") in told
    assert "Deferred imports: scipy, sympy (imported for sympy.Symbol)." in told


def test_a_start_that_is_not_over_says_so() -> None:
    assert '<p class="headline">not ready yet</p>' in startup_page(STARTUP | {"marks": {}})
