"""A comparison as files: `startup.html`, one page with figures and both timelines drawn, and `startup.json`.

The page is a single file with inline SVG: it opens anywhere, without network or scripts.
"""

from __future__ import annotations

import html
import json
import os
import platform
import statistics
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from prebake import timeline
from prebake_build.measure import FIGURES, Comparison, Sample

PACKAGES = ("prebake", "torch", "transformers", "easyocr", "torchvision", "safetensors")

_WIDTH, _LEFT, _ROW, _TOP = 960, 190, 22, 26
"""Pixels of the drawing: whole width, column of names, height of a row, height of the axis."""
_COLOURS = ("#3b7dd8", "#d9822b", "#3a9d5d", "#a854c7", "#c23b4e", "#6b7280")


def to_json(comparison: Comparison, title: str) -> str:
    """Every sample, with the versions and the machine they were taken on."""
    document = {
        "format": 1,
        "title": title,
        "baseline": comparison.baseline,
        "candidate": comparison.candidate,
        "machine": machine(),
        "versions": versions(),
        "same_answers": comparison.same_answers,
        "ratios": {figure: comparison.ratio(figure) for figure in FIGURES},
        "samples": {
            label: [{figure: getattr(sample, figure) for figure in FIGURES} for sample in samples]
            for label, samples in comparison.samples.items()
        },
        "timelines": {label: comparison.typical(label).startup for label in comparison.samples},
    }
    return json.dumps(document, indent=2, ensure_ascii=False) + "\n"


def machine() -> dict[str, Any]:
    """What the figures depend on, without naming the machine."""
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
    labels = (comparison.baseline, comparison.candidate)
    longest = max(_end(comparison.typical(label)) for label in labels)
    drawings = [_drawing(label, comparison.typical(label), longest) for label in labels]
    about = ", ".join(f"{name} {value}" for name, value in {**versions(), **machine()}.items())
    answers = "the same" if comparison.same_answers else "<strong>different</strong>"
    rounds = len(comparison.samples[comparison.candidate])
    return _PAGE.format(
        title=html.escape(title),
        headline=html.escape(headline(comparison)),
        table=_table(comparison),
        drawings="\n".join(drawings),
        note=f"Starts of each that count: {rounds}, in turn; medians, with the lowest and highest. "
        f"First answers of both: {answers}. The drawn starts are those with the median time to ready. "
        f"{html.escape(about)}.",
    )


def headline(comparison: Comparison) -> str:
    """The one sentence that matters."""
    middle = {label: statistics.median(comparison.values(label, "ready")) for label in comparison.samples}
    ratio = statistics.median(comparison.ratio("ready"))
    before, after = middle[comparison.baseline], middle[comparison.candidate]
    return f"ready after {after:.2f} s instead of {before:.2f} s: {100 * (1 - ratio):.0f} % sooner"


def _table(comparison: Comparison) -> str:
    rows = []
    for figure, (name, unit, factor) in FIGURES.items():
        cells = [
            _cell([v * factor for v in comparison.values(label, figure)], unit)
            for label in (comparison.baseline, comparison.candidate)
        ]
        rows.append(f"<tr><th>{name}</th>{''.join(cells)}{_cell(comparison.ratio(figure), '')}</tr>")
    head = "".join(f"<th>{html.escape(text)}</th>" for text in ("", comparison.baseline, comparison.candidate, "ratio"))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _cell(values: Sequence[float], unit: str) -> str:
    digits = 0 if unit == "MB" else 2
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"<td><b>{middle}</b> {unit} <small>{low} to {high}</small></td>"


def _end(sample: Sample) -> float:
    marks: Mapping[str, float] = sample.startup["marks"]
    spans: Sequence[Mapping[str, float]] = sample.startup["spans"]
    return max([*marks.values(), *(span["end"] for span in spans), 0.001])


def _drawing(label: str, sample: Sample, longest: float) -> str:
    """One timeline as SVG: a row a span, coloured by model; marks as vertical lines."""
    spans = _rows(sample.startup["spans"])
    models = list(dict.fromkeys(span["model"] or "" for span in spans))
    colours = {model: _COLOURS[i % len(_COLOURS)] for i, model in enumerate(models)}
    height = _TOP + _ROW * len(spans) + 8
    scale = (_WIDTH - _LEFT - 60) / longest
    parts = [_axis(longest, scale, height)]
    for row, span in enumerate(spans):
        y, x = _TOP + row * _ROW, _LEFT + span["start"] * scale
        seconds = span["end"] - span["start"]
        name = "  " * span["depth"] + " ".join(filter(None, (span["model"], span["name"])))
        parts.append(
            f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{html.escape(name)}</text>'
            f'<rect x="{x:.1f}" y="{y + 3}" width="{max(seconds * scale, 1.5):.1f}" height="{_ROW - 7}" rx="2" '
            f'fill="{colours[span["model"] or ""]}" opacity="{0.45 if span["name"] == "load" else 0.95}">'
            f"<title>{html.escape(name.strip())}: {seconds:.3f} s</title></rect>"
            f'<text class="s" x="{x + max(seconds * scale, 1.5) + 4:.1f}" y="{y + 14}">{seconds:.2f}</text>'
        )
    parts += [_mark(name, at, scale, height) for name, at in sample.startup["marks"].items() if name != "port open"]
    return (
        f'<h2>{html.escape(label)}</h2><svg viewBox="0 0 {_WIDTH} {height}" role="img" '
        f'aria-label="Timeline of the {html.escape(label)} start">{"".join(parts)}</svg>'
    )


def _rows(spans: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The spans that can be seen: those under 5 ms would be rows of nothing."""
    return [span for span in spans if span["end"] - span["start"] >= 0.005]


def _axis(longest: float, scale: float, height: int) -> str:
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if longest / step <= 12 or step == 50)
    ticks = [step * i for i in range(int(longest / step) + 1)]
    return "".join(
        f'<line x1="{_LEFT + t * scale:.1f}" x2="{_LEFT + t * scale:.1f}" y1="{_TOP - 6}" y2="{height}" class="grid"/>'
        f'<text class="s" x="{_LEFT + t * scale:.1f}" y="{_TOP - 12}" text-anchor="middle">{t:g} s</text>'
        for t in ticks
    )


def _mark(name: str, at: float, scale: float, height: int) -> str:
    colour = {timeline.READY: "#3a9d5d", timeline.FIRST_ANSWER: "#c23b4e"}.get(name, "#6b7280")
    x = _LEFT + at * scale
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height}" stroke="{colour}" stroke-width="1.5">'
        f"<title>{html.escape(name)}: {at:.2f} s</title></line>"
        f'<text class="s" x="{x - 3:.1f}" y="{height - 2}" text-anchor="end" fill="{colour}">{html.escape(name)}</text>'
    )


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
  :root {{ color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }}
  body {{ max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }}
  h1 {{ font-size: 1.2rem; margin-bottom: 0; }} h2 {{ font-size: 1.1rem; margin: 2rem 0 .3rem; }}
  .headline {{ font-size: 1.7rem; margin: .2rem 0 1.5rem; }}
  table {{ border-collapse: collapse; }} th, td {{ text-align: left; padding: .3rem 1.4rem .3rem 0; }}
  td {{ font-variant-numeric: tabular-nums; }} tbody tr {{ border-top: 1px solid #8885; }} small {{ opacity: .7; }}
  svg {{ width: 100%; height: auto; }} svg text {{ font-size: 12px; fill: currentColor; }}
  svg text.s {{ font-size: 10.5px; opacity: .8; }} .grid {{ stroke: #8883; }}
  p.note {{ opacity: .75; font-size: .9rem; margin-top: 2rem; }}
</style>
<h1>{title}</h1>
<p class="headline">{headline}</p>
{table}
{drawings}
<p class="note">{note}</p>
</html>
"""
