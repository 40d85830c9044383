"""Writes a comparison as `startup.html`, a page with figures and both timelines, and as `startup.json`.

The page is a single file with inline SVG; it needs neither network nor scripts.
"""

from __future__ import annotations

import html
import json
import os
import platform
import statistics
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prebake.telemetry import drawing
from prebake_build.measure.compare import FIGURES, Comparison

PACKAGES = ("prebake", "torch", "transformers", "easyocr", "torchvision", "safetensors")


def to_json(comparison: Comparison, title: str) -> str:
    """All samples, with package versions and the machine's properties."""
    document = {
        "format": 1,
        "title": title,
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "machine": machine(),
        "versions": versions(),
        "same_answers": comparison.same_answers if comparison.asked else None,
        "ratios": {figure: comparison.ratio(figure) for figure in comparison.figures()},
        "samples": {
            label: [{figure: getattr(sample, figure) for figure in FIGURES} for sample in samples]
            for label, samples in comparison.samples.items()
        },
        "timelines": {label: comparison.typical(label).startup for label in comparison.samples},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def machine() -> dict[str, Any]:
    """Properties of the machine that the figures depend on; nothing that identifies it."""
    return {"processors": os.cpu_count(), "architecture": platform.machine(), "system": platform.system(),
            "python": platform.python_version()}  # fmt: skip


def versions() -> dict[str, str]:
    """Package → installed version."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def to_html(comparison: Comparison, title: str) -> str:
    """The page. Both timelines share one axis, so that a bar's length means the same in both."""
    typical = {label: comparison.typical(label) for label in (comparison.baseline, comparison.candidate)}
    starts = {label: sample.startup for label, sample in typical.items() if sample.startup is not None}
    longest = max(map(drawing.length, starts.values()), default=0)
    about = ", ".join(f"{name} {value}" for name, value in {**versions(), **machine()}.items())
    answers = "the same" if comparison.same_answers else "<strong>different</strong>"
    answers = f"First answers of both: {answers}." if comparison.asked else "Answers were not compared."
    rounds = len(comparison.samples[comparison.candidate])
    drawings = [f"<h2>{html.escape(label)}</h2>{drawing.svg(startup, f'the {label} start', longest)}"
                for label, startup in starts.items()]  # fmt: skip
    note = (
        f'<p class="note">Starts of each that count: {rounds}, in turn; medians, with the lowest and highest. '
        f"{answers} {'The drawn starts are those with the median time to ready. ' * bool(starts)}"
        f"{html.escape(about)}.</p>"
    )
    return drawing.page(title, headline(comparison), [_table(comparison), *drawings, note])


def headline(comparison: Comparison) -> str:
    """The one sentence that matters."""
    middle = {label: statistics.median(comparison.values(label, "ready")) for label in comparison.samples}
    ratio = statistics.median(comparison.ratio("ready"))
    before, after = middle[comparison.baseline], middle[comparison.candidate]
    return f"ready after {after:.2f} s instead of {before:.2f} s: {100 * (1 - ratio):.0f} % sooner"


def summary(comparison: Comparison) -> str:
    """The comparison in one sentence, for readers who skip the table."""
    one, other = comparison.baseline, comparison.candidate
    middle = {label: statistics.median(comparison.values(label, "ready")) for label in (one, other)}
    text = (
        f"The {other} service was ready {middle[other]:.1f} s after its start, the {one} one {middle[one]:.1f} s "
        f"({statistics.median(comparison.ratio('ready')):.2f} of the time)"
    )
    if not comparison.asked:
        return f"{text}."
    answers = "gives the same answers" if comparison.same_answers else "gives different answers"
    if "first_request" not in comparison.figures():
        return f"{text}; it {answers}."
    first = statistics.median(comparison.values(other, "first_request"))
    return f"{text}; it {answers}, the first within {first:.1f} s of the request."


def _table(comparison: Comparison) -> str:
    labels = (comparison.baseline, comparison.candidate)
    rows = [
        [name, *(_cell([v * factor for v in comparison.values(label, figure)], unit) for label in labels),
         _cell(comparison.ratio(figure), "")]
        for figure, (name, unit, factor) in FIGURES.items() if figure in comparison.figures()
    ]  # fmt: skip
    return drawing.table(["", *labels, "ratio"], rows)


def _cell(values: Sequence[float], unit: str) -> str:
    digits = 0 if unit == "MB" else 2
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"<b>{middle}</b> {unit} <small>{low} to {high}</small>"
