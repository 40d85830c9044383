"""Compares the starts of two services: launches them in turn, times them from outside, and compares them pair by pair.

The clock starts at the launch and stops when `/readyz` first answers 200. Then the service's typical request is sent
once for the first answer, and `STEADY` more times for the steady response time. Memory comes from the kernel's counters
of the service. Rounds are interleaved, A B A B …, so a drift of the machine's speed affects both alike.
"""

from __future__ import annotations

import http.client
import json
import logging
import statistics
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol
from urllib.parse import urlsplit

from prebake.documents.columns import columns
from prebake.errors import PrebakeError
from prebake.telemetry.services import Request

logger = logging.getLogger(__name__)

Ask = Callable[[Collection[str]], Request | None]
"""The request for a service with these models, or None if there is none."""
STEADY = 3
"""Number of requests after the first; their median is the steady response time."""
POLL = 0.005
"""Seconds between two requests for `/readyz`."""


class Service(Protocol):
    """A launched service."""

    url: str

    def stop(self) -> None:
        """End it and clean up. Safe to call again."""

    def log(self) -> str:
        """Its output, for error messages."""

    def alive(self) -> bool:
        """Whether it is still running."""


class Launcher(Protocol):
    """One way to start a service."""

    label: str

    def launch(self) -> Service:
        """Start it and return immediately; the caller's clock is running."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One start."""

    ready: float
    """Seconds from the launch."""
    first_answer: float
    """Seconds from the launch to the first answer."""
    first_request: float
    """Seconds from the first request to its answer."""
    steady_request: float
    """The same for later requests, the median of `STEADY`."""
    peak_memory: int
    """Peak resident memory up to the first answer, in bytes."""
    anonymous: int
    """Bytes of private memory when ready."""
    answer: Any
    """The first answer, to check that both services give the same."""
    startup: dict[str, Any] = field(repr=False)
    """The service's timeline, from `/startup`."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The samples of two services, taken in turn."""

    baseline: str
    candidate: str
    samples: dict[str, list[Sample]]
    """Label → one sample per round."""

    def values(self, label: str, figure: str) -> list[float]:
        return [getattr(sample, figure) for sample in self.samples[label]]

    def ratio(self, figure: str) -> list[float]:
        """The ratio candidate / baseline of each round, sorted."""
        pairs = zip(self.values(self.candidate, figure), self.values(self.baseline, figure), strict=True)
        return sorted(candidate / baseline for candidate, baseline in pairs)

    def typical(self, label: str) -> Sample:
        """The sample whose time to ready is the median (the lower one of two)."""
        ordered = sorted(self.samples[label], key=lambda sample: sample.ready)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def same_answers(self) -> bool:
        """Whether every start of both services gave the same first answer."""
        answers = [json.dumps(sample.answer, sort_keys=True) for taken in self.samples.values() for sample in taken]
        return len(set(answers)) == 1


FIGURES = {
    "ready": ("ready", "s", 1.0),
    "first_answer": ("first answer", "s", 1.0),
    "first_request": ("first request", "s", 1.0),
    "steady_request": ("steady request", "s", 1.0),
    "peak_memory": ("peak memory", "MB", 1e-6),
    "anonymous": ("private memory", "MB", 1e-6),
}
"""Figure of a sample → title, unit, and factor to that unit."""


def compare(baseline: Launcher, candidate: Launcher, ask: Ask, *, rounds: int, timeout: float = 120.0) -> Comparison:
    """Start both in turn, `rounds` times each, after one warm-up start of each that does not count.

    Raises PrebakeError if a service ends or is not ready within `timeout` seconds; the message contains the end of its
    log. Every service is stopped in any case.
    """
    samples: dict[str, list[Sample]] = {baseline.label: [], candidate.label: []}
    for number in range(rounds + 1):
        for launcher in (baseline, candidate):
            sample = measure(launcher, ask, timeout=timeout)
            counted = f"round {number} of {rounds}" if number else "warm-up"
            logger.info("%s: %s: ready %.2f s, first answer %.2f s", counted, launcher.label,
                        sample.ready, sample.first_answer)  # fmt: skip
            if number:
                samples[launcher.label].append(sample)
    return Comparison(baseline=baseline.label, candidate=candidate.label, samples=samples)


def measure(launcher: Launcher, ask: Ask, *, timeout: float = 120.0) -> Sample:
    """Measure one start. Raises PrebakeError like `compare`, and if `ask` has no request for the service's models."""
    started = time.perf_counter()
    service = launcher.launch()
    try:
        status = _until_ready(service, launcher.label, started, timeout)
        ready = time.perf_counter() - started
        request = ask(status["models"])
        if request is None:
            raise PrebakeError(
                f"{launcher.label}: no request for its models {', '.join(status['models'])}: "
                'give one with --request "METHOD PATH [@FILE]"'
            )
        anonymous = _get(service.url, "/startup")[1]["memory"]["now"]["anonymous"]
        asked = time.perf_counter()
        answer = _answer(service.url, request, launcher.label)
        first_request = time.perf_counter() - asked
        first_answer = time.perf_counter() - started
        startup = _get(service.url, "/startup")[1]
        steady = [_seconds(lambda: _answer(service.url, request, launcher.label)) for _ in range(STEADY)]
    except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
        raise PrebakeError(
            f"{launcher.label}: was ready, but gave an unexpected answer ({type(error).__name__}: {error}); "
            f"its log ends:\n{service.log()[-2000:]}"
        ) from error
    finally:
        service.stop()
    return Sample(ready=ready, first_answer=first_answer, first_request=first_request,
                  steady_request=statistics.median(steady), anonymous=anonymous, answer=answer, startup=startup,
                  peak_memory=startup["memory"]["now"]["peak_rss"])  # fmt: skip


def _answer(url: str, request: Request, label: str) -> Any:
    code, answer = _request(url, request.method, request.path, request.body)
    if code != 200:
        raise PrebakeError(f"{label}: {request.path} was answered with {code}: {answer}")
    return answer


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _until_ready(service: Service, label: str, started: float, timeout: float) -> Any:
    while (left := timeout - (time.perf_counter() - started)) > 0:
        try:
            code, document = _get(service.url, "/readyz", timeout=left)
        except (OSError, http.client.HTTPException, ValueError):
            code, document = 0, None
        if code == 200:
            return document
        if not service.alive():
            raise PrebakeError(f"{label}: ended before it was ready; its log ends:\n{service.log()[-2000:]}")
        time.sleep(POLL)
    raise PrebakeError(f"{label}: not ready within {timeout:g} s; its log ends:\n{service.log()[-2000:]}")


def _get(url: str, path: str, *, timeout: float = 60) -> tuple[int, Any]:
    return _request(url, "GET", path, None, timeout=timeout)


def _request(url: str, method: str, path: str, body: bytes | None, *, timeout: float = 60) -> tuple[int, Any]:
    connection = http.client.HTTPConnection(urlsplit(url).netloc, timeout=timeout)
    try:
        connection.request(method, path, body)
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    finally:
        connection.close()


def table(comparison: Comparison) -> str:
    """The comparison as a text table: median and range of each figure for both services, and of the ratios."""
    rows: list[tuple[str, ...]] = [("", comparison.baseline, comparison.candidate, "ratio")]
    for figure, (title, unit, factor) in FIGURES.items():
        cells = [_spread([value * factor for value in comparison.values(label, figure)], unit)
                 for label in (comparison.baseline, comparison.candidate)]  # fmt: skip
        rows.append((title, *cells, _spread(comparison.ratio(figure), "")))
    return "\n".join(columns(rows))


def _spread(values: Sequence[float], unit: str) -> str:
    digits = 0 if unit == "MB" else 2
    low, middle, high = (f"{value:,.{digits}f}" for value in (min(values), statistics.median(values), max(values)))
    return f"{middle}{' ' + unit if unit else ''} ({low} to {high})"


def findings(comparison: Comparison, *, shorter: float, memory_above: float, first_request: float) -> list[str]:
    """One sentence for each limit that the candidate's medians miss. Limits are percentages, and seconds for the first
    request."""
    missed = []
    gained = 100 * (1 - statistics.median(comparison.ratio("ready")))
    if gained < shorter:
        missed.append(f"ready {gained:.0f} % sooner than {comparison.baseline}, expected at least {shorter:g} %")
    above = 100 * (statistics.median(comparison.ratio("peak_memory")) - 1)
    if above > memory_above:
        missed.append(f"peak memory {above:.0f} % above {comparison.baseline}'s, allowed are {memory_above:g} %")
    waited = statistics.median(comparison.values(comparison.candidate, "first_request"))
    if waited > first_request:
        missed.append(f"the first request took {waited:.2f} s, allowed are {first_request:g} s")
    if not comparison.same_answers:
        missed.append("the services gave different first answers")
    return missed
