"""What a comparison says: the table, and the limits that were missed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from prebake.documents.columns import columns
from prebake_build.measure.compare import FIGURES, Comparison, Sample


def table(comparison: Comparison) -> str:
    """The comparison as a text table: median and range of each figure for both services, and of the ratios."""
    rows: list[tuple[str, ...]] = [("", comparison.baseline, comparison.candidate, "ratio")]
    for figure in comparison.figures():
        title, unit, factor = FIGURES[figure]
        cells = [_spread([value * factor for value in comparison.values(label, figure)], unit)
                 for label in (comparison.baseline, comparison.candidate)]  # fmt: skip
        rows.append((title, *cells, _spread(comparison.ratio(figure), "")))
    return "\n".join(columns(rows))


def _spread(values: Sequence[float], unit: str) -> str:
    digits = 0 if unit == "MB" else 2
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle}{' ' + unit if unit else ''} ({low} to {high})"


def findings(
    comparison: Comparison, *, shorter: float, memory_above: float, first_request: float, any_answer: bool = False
) -> list[str]:
    """One sentence for each limit that the candidate's medians miss.

    Limits are percentages, and seconds for the first request. A limit whose figure was not measured is not missed.
    """
    missed = []
    measured = comparison.figures()
    gained = 100 * (1 - statistics.median(comparison.ratio("ready")))
    if gained < shorter:
        missed.append(f"ready {gained:.0f} % sooner than {comparison.baseline}, expected at least {shorter:g} %")
    if "peak_memory" in measured:
        above = 100 * (statistics.median(comparison.ratio("peak_memory")) - 1)
        if above > memory_above:
            missed.append(f"peak memory {above:.0f} % above {comparison.baseline}'s, allowed are {memory_above:g} %")
    if "first_request" in measured:
        waited = statistics.median(comparison.values(comparison.candidate, "first_request"))
        if waited > first_request:
            missed.append(f"the first request took {waited:.2f} s, allowed are {first_request:g} s")
    if not any_answer and not comparison.same_answers:
        missed.append(_different(comparison))
    return missed


def _different(comparison: Comparison) -> str:
    if not comparison.steady_baseline:
        return (
            f"{comparison.baseline} gave different answers at different starts, so they can't be compared: ask for "
            "something that is always the same (a seed), or give --any-answer"
        )
    numbers = "" if comparison.tolerance is not None else "; --tolerance 1e-5 allows small differences of numbers"
    return f"the services gave different answers{numbers}"


def notes(comparison: Comparison) -> list[str]:
    """What the reader of the figures should know."""
    told = {label: taken[0].told for label, taken in comparison.samples.items() if taken}
    found = [f"{label} was ready when {how}." for label, how in told.items() if how]
    if len(set(told.values())) > 1:
        found.append("The two were told ready in different ways: name one with --ready, so that both mean the same.")
    found += [line for label, taken in comparison.samples.items() if taken for line in _loads(label, taken[-1])]
    if not comparison.asked:
        found.append("Answers were not compared: no request was sent (--request), and no result read (--result).")
    return found


def _loads(label: str, sample: Sample) -> list[str]:
    """How many of the loads were mapped, and why others were not, if the service reports its loads."""
    loads = [load for load in (sample.startup or {}).get("loads", ()) if load.get("class")]
    if not loads:
        return []
    others = {f"{load['uri'] or load['function']}: {load['reason']}": None for load in loads
              if load["outcome"] != "mapped"}  # fmt: skip
    why = f" ({'; '.join(others)})" if others else ""
    return [f"{label}: {sum(load['outcome'] == 'mapped' for load in loads)} of {len(loads)} loads were mapped{why}."]
