"""Draws a start as SVG and as an HTML page: one file without scripts or external resources."""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prebake.telemetry import report, timeline

SHORTEST = 0.005
"""Seconds; shorter spans would be invisible and are left out."""

_WIDTH, _LEFT, _ROW, _TOP = 960, 190, 22, 26
"""Pixels: total width, width of the name column, height of a row, height of the axis."""
_COLOURS = ("#3b7dd8", "#d9822b", "#3a9d5d", "#a854c7", "#c23b4e", "#6b7280")
_MARKS = {timeline.READY: "#3a9d5d", timeline.FIRST_ANSWER: "#c23b4e"}
_STYLE = """\
  :root { color-scheme: light dark; font: 16px/1.5 system-ui, sans-serif; }
  body { max-width: 64rem; margin: 2rem auto; padding: 0 1rem; }
  h1 { font-size: 1.2rem; margin-bottom: 0; } h2 { font-size: 1.1rem; margin: 2rem 0 .3rem; }
  .headline { font-size: 1.7rem; margin: .2rem 0 1.5rem; }
  table { border-collapse: collapse; } th, td { text-align: left; padding: .3rem 1.4rem .3rem 0; }
  td { font-variant-numeric: tabular-nums; } tbody tr { border-top: 1px solid #8885; } small { opacity: .7; }
  svg { width: 100%; height: auto; } svg text { font-size: 12px; fill: currentColor; }
  svg text.s { font-size: 10.5px; opacity: .8; } .grid { stroke: #8883; }
  p.note { opacity: .75; font-size: .9rem; margin-top: 2rem; }"""


def startup_page(startup: Mapping[str, Any]) -> str:
    """The result of `report.document` as an HTML page."""
    models = table(
        ["model", "state", "tier", "seconds", "error or fallback reason"],
        [[html.escape(name), model["state"], model["tier"] or "", _seconds(model["seconds"]),
          html.escape(model["error"] or model["fallback_reason"] or "")] for name, model in startup["models"].items()],
    )  # fmt: skip
    memory = table(
        ["memory, MB", *report.MEMORY_KINDS],
        [[html.escape(name), *report.memory_sizes(timeline.Memory(**at))] for name, at in startup["memory"].items()],
    )
    put_off = [html.escape(package + (f" (imported for {user})" if user else ""))
               for package, user in startup["deferred"].items()]  # fmt: skip
    parts = [models, "<h2>Where the time went</h2>", svg(startup, "this start"), "<h2>Memory</h2>", memory,
             f'<p class="note">Deferred imports: {", ".join(put_off) or "none"}.</p>']  # fmt: skip
    return page("How this process started", report.headline(startup), parts)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def page(title: str, headline: str, parts: Iterable[str]) -> str:
    """A complete HTML page. `parts` are HTML; the other arguments are text."""
    return (
        '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{html.escape(title)}</title>\n<style>\n{_STYLE}\n</style>\n"
        f'<h1>{html.escape(title)}</h1>\n<p class="headline">{html.escape(headline)}</p>\n'
        + "\n".join(parts)
        + "\n</html>\n"
    )


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table whose first column has the row names. Cells are HTML; heads are text."""
    heads = "".join(f"<th>{html.escape(text)}</th>" for text in head)
    body = "".join(f"<tr><th>{row[0]}</th>{''.join(f'<td>{cell}</td>' for cell in row[1:])}</tr>" for row in rows)
    return f"<table><thead><tr>{heads}</tr></thead><tbody>{body}</tbody></table>"


def length(startup: Mapping[str, Any]) -> float:
    """Length of the timeline (from `Timeline.to_dict`) in seconds."""
    ends: list[float] = [*startup["marks"].values(), *(span["end"] for span in startup["spans"])]
    return max([*ends, 0.001])


def svg(startup: Mapping[str, Any], label: str, seconds: float | None = None) -> str:
    """The timeline: one row per span, coloured by model; marks are vertical lines. `seconds` sets the length of the
    axis (default: the timeline's length), so drawings with the same value are comparable."""
    spans = [span for span in startup["spans"] if span["end"] - span["start"] >= SHORTEST]
    models = list(dict.fromkeys(span["model"] or "" for span in spans))
    colours = {model: _COLOURS[i % len(_COLOURS)] for i, model in enumerate(models)}
    longest = seconds or length(startup)
    height = _TOP + _ROW * len(spans) + 8
    scale = (_WIDTH - _LEFT - 60) / longest
    parts = [_axis(longest, scale, height)]
    parts += [_bar(span, row, scale, colours[span["model"] or ""]) for row, span in enumerate(spans)]
    parts += [_mark(name, at, scale, height) for name, at in startup["marks"].items() if name != "port open"]
    return (
        f'<svg viewBox="0 0 {_WIDTH} {height}" role="img" aria-label="Timeline of {html.escape(label)}">'
        f"{''.join(parts)}</svg>"
    )


def _bar(span: Mapping[str, Any], row: int, scale: float, colour: str) -> str:
    y, x = _TOP + row * _ROW, _LEFT + span["start"] * scale
    seconds = span["end"] - span["start"]
    width = max(seconds * scale, 1.5)
    name = "  " * span["depth"] + html.escape(" ".join(filter(None, (span["model"], span["name"]))))
    return (
        f'<text x="{_LEFT - 8}" y="{y + 14}" text-anchor="end">{name}</text>'
        f'<rect x="{x:.1f}" y="{y + 3}" width="{width:.1f}" height="{_ROW - 7}" rx="2" '
        f'fill="{colour}" opacity="{0.45 if span["name"] == "load" else 0.95}">'
        f"<title>{name.strip()}: {seconds:.3f} s</title></rect>"
        f'<text class="s" x="{x + width + 4:.1f}" y="{y + 14}">{seconds:.2f}</text>'
    )


def _axis(longest: float, scale: float, height: int) -> str:
    step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50) if longest / step <= 12 or step == 50)
    ticks = [step * i for i in range(int(longest / step) + 1)]
    return "".join(
        f'<line x1="{_LEFT + t * scale:.1f}" x2="{_LEFT + t * scale:.1f}" y1="{_TOP - 6}" y2="{height}" class="grid"/>'
        f'<text class="s" x="{_LEFT + t * scale:.1f}" y="{_TOP - 12}" text-anchor="middle">{t:g} s</text>'
        for t in ticks
    )


def _mark(name: str, at: float, scale: float, height: int) -> str:
    colour, x, name = _MARKS.get(name, "#6b7280"), _LEFT + at * scale, html.escape(name)
    return (
        f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{_TOP}" y2="{height}" stroke="{colour}" stroke-width="1.5">'
        f"<title>{name}: {at:.2f} s</title></line>"
        f'<text class="s" x="{x - 3:.1f}" y="{height - 2}" text-anchor="end" fill="{colour}">{name}</text>'
    )
