"""Compares the starts of two services: launches them in turn, times them from outside, and compares them pair by pair.

The clock starts at the launch and stops when the service is ready, as `prebake.watching.readiness` tells it. Then the
requests are sent once, and the first of them `STEADY` more times for the steady response time. Memory comes from the
kernel's counters of the service's processes. Rounds are interleaved, A B A B …, so a drift of the machine's speed
affects both alike.
"""

from __future__ import annotations

import json
import logging
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from prebake.errors import PrebakeError
from prebake.telemetry.services import Request
from prebake.watching.proc import Memory
from prebake.watching.questions import Answer, HttpQuestion, Question, send
from prebake.watching.readiness import AtAnyPath, AtExit, Ready, Told, Watched, unready, wait
from prebake_build.measure.answers import same, written
from prebake_build.measure.looks import Looks

logger = logging.getLogger(__name__)

STEADY = 3
"""Number of requests after the first; their median is the steady response time."""


class Service(Watched, Protocol):
    """A launched service."""

    def stop(self) -> None:
        """End it and clean up. Safe to call again."""

    def memory(self) -> Memory | None:
        """Memory of its processes, or None where the kernel's counters are out of reach."""


class Launcher(Protocol):
    """One way to start a service."""

    label: str

    def launch(self) -> Service:
        """Start it and return immediately; the caller's clock is running."""


@runtime_checkable
class Unsealable(Protocol):
    """A launcher that can start its service under milder conditions."""

    def unseal(self) -> bool:
        """Do so from the next launch on. Returns whether that changes anything."""


@runtime_checkable
class Reporting(Protocol):
    """A launcher whose service reports elsewhere than at `/startup`."""

    def timeline(self) -> dict[str, Any] | None:
        """The report of the last launched service, as far as there is one."""


@dataclass(frozen=True, kw_only=True)
class Ask:
    """What is asked of both services."""

    ready: Callable[[], Ready] = AtAnyPath
    """Makes what tells that a service is ready; called for each start."""
    questions: Callable[[Told], Sequence[Question]] = lambda told: ()
    """The requests for a service that became ready this way."""
    results: Sequence[Path] = ()
    """Files and folders that the service writes; they are compared as answers."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One start. Figures that were not measured are None."""

    ready: float
    """Seconds from the launch."""
    told: str = ""
    """What told that it was ready."""
    first_answer: float | None = None
    """Seconds from the launch to the answer to the first request."""
    first_request: float | None = None
    """Seconds from the first request to its answer."""
    steady_request: float | None = None
    """The same for later requests, the median of `STEADY`."""
    peak_memory: int | None = None
    """Peak resident memory up to the last answer, in bytes; the sum of its processes."""
    anonymous: int | None = None
    """Bytes of private memory when ready."""
    answers: tuple[Answer, ...] = ()
    """One for each request, to check that both services give the same."""
    startup: dict[str, Any] | None = field(default=None, repr=False)
    """The service's timeline, from `/startup` or its report, if it has one."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """The samples of two services, taken in turn."""

    baseline: str
    candidate: str
    samples: dict[str, list[Sample]]
    """Label → one sample per round."""
    tolerance: float | None = None
    """Relative difference of numbers up to which answers count as the same; None: they must be equal byte for byte."""

    def values(self, label: str, figure: str) -> list[float]:
        """The figure of each round; empty if it was not measured in all of them."""
        found = [getattr(sample, figure) for sample in self.samples[label]]
        return [] if None in found else found

    def figures(self) -> list[str]:
        """The figures that were measured for both services."""
        return [name for name in FIGURES if self.values(self.baseline, name) and self.values(self.candidate, name)]

    def ratio(self, figure: str) -> list[float]:
        """The ratio candidate / baseline of each round, sorted."""
        pairs = zip(self.values(self.candidate, figure), self.values(self.baseline, figure), strict=True)
        return sorted(candidate / baseline for candidate, baseline in pairs)

    def typical(self, label: str) -> Sample:
        """The sample whose time to ready is the median (the lower one of two)."""
        ordered = sorted(self.samples[label], key=lambda sample: sample.ready)
        return ordered[(len(ordered) - 1) // 2]

    @property
    def asked(self) -> bool:
        """Whether there are answers to compare."""
        return any(sample.answers for taken in self.samples.values() for sample in taken)

    @property
    def same_answers(self) -> bool:
        """Whether every start of both services gave the same answers."""
        return self._all_same([*self.samples[self.baseline], *self.samples[self.candidate]])

    @property
    def steady_baseline(self) -> bool:
        """Whether every start of the baseline gave the same answers."""
        return self._all_same(self.samples[self.baseline])

    def _all_same(self, samples: Sequence[Sample]) -> bool:
        first, *rest = (sample.answers for sample in samples)
        return all(
            len(answers) == len(first) and all(same(*pair, self.tolerance) for pair in zip(first, answers, strict=True))
            for answers in rest
        )


FIGURES = {
    "ready": ("ready", "s", 1.0),
    "first_answer": ("first answer", "s", 1.0),
    "first_request": ("first request", "s", 1.0),
    "steady_request": ("steady request", "s", 1.0),
    "peak_memory": ("peak memory", "MB", 1e-6),
    "anonymous": ("private memory", "MB", 1e-6),
}
"""Figure of a sample → title, unit, and factor to that unit."""


def compare(
    baseline: Launcher, candidate: Launcher, ask: Ask, *, rounds: int, timeout: float = 120.0,
    tolerance: float | None = None,
) -> Comparison:  # fmt: skip
    """Start both in turn, `rounds` times each, after one warm-up start of each that does not count.

    Raises PrebakeError if a service ends or is not ready within `timeout` seconds; the message contains the end of its
    log. Every service is stopped in any case.
    """
    samples: dict[str, list[Sample]] = {baseline.label: [], candidate.label: []}
    for number in range(rounds + 1):
        for launcher in (baseline, candidate):
            sample = measure(launcher, ask, timeout=timeout)
            counted = f"round {number} of {rounds}" if number else "warm-up"
            answered = "" if sample.first_answer is None else f", first answer {sample.first_answer:.2f} s"
            told = "" if number else f" ({sample.told})"
            logger.info("%s: %s: ready %.2f s%s%s", counted, launcher.label, sample.ready, told, answered)
            if number:
                samples[launcher.label].append(sample)
    return Comparison(baseline=baseline.label, candidate=candidate.label, samples=samples, tolerance=tolerance)


def measure(launcher: Launcher, ask: Ask, *, timeout: float = 120.0) -> Sample:
    """Measure one start. Raises PrebakeError like `compare`, and if a request gets no answer of status 2xx.

    If the service does not become ready, and its launcher is `Unsealable`, it is started once more. It need not end by
    itself: servers with workers start those that die again and again.
    """
    try:
        return _measure(launcher, ask, timeout)
    except _UnreadyError:
        if isinstance(launcher, Unsealable) and launcher.unseal():
            return _measure(launcher, ask, timeout)
        raise


class _UnreadyError(PrebakeError):
    """The service ended before it was ready, or was not ready in time."""


def _measure(launcher: Launcher, ask: Ask, timeout: float) -> Sample:
    since = time.time()
    started = time.perf_counter()
    service = launcher.launch()
    memory = Looks(service.memory)
    try:
        ready = ask.ready()
        # looking costs time, and what is alive when ready tells its own peak
        meanwhile = memory.look if isinstance(ready, AtExit) else None
        waited = wait(service, ready, timeout, started=started, meanwhile=meanwhile)
        if waited.told is None:
            raise _UnreadyError(f"{launcher.label}: {unready(service, waited, timeout)}; {_log(service)}")
        memory.look(now=True)
        told = meanwhile is None or memory.enough
        anonymous = memory.last.anonymous if told and memory.last is not None else None
        times, answers, startup = _ask(service, launcher, waited.told, ask, started)
        memory.look(now=True)
        for path in ask.results:
            answers += written(path, since, launcher.label)
    finally:
        service.stop()
    return Sample(ready=waited.seconds, told=waited.told.how, answers=answers, startup=startup,
                  peak_memory=memory.peak if told else None, anonymous=anonymous, **times)  # fmt: skip


def _ask(
    service: Service, launcher: Launcher, told: Told, ask: Ask, started: float
) -> tuple[dict[str, float], tuple[Answer, ...], dict[str, Any] | None]:
    """Send the requests: the times as figures of a `Sample`, the answers, and the timeline afterwards."""
    times: dict[str, float] = {}
    try:
        questions = ask.questions(told)
        answers = []
        for question in questions:
            asked = time.perf_counter()
            answers.append(send(question, told.url))
            now = time.perf_counter()
            times.setdefault("first_request", now - asked)
            times.setdefault("first_answer", now - started)
        startup = timeline(told) if told.url else None
        if startup is None and isinstance(launcher, Reporting):
            startup = launcher.timeline()
        if questions:
            later = [_seconds(lambda: send(questions[0], told.url)) for _ in range(STEADY)]
            times["steady_request"] = statistics.median(later)
    except PrebakeError as error:
        raise PrebakeError(f"{launcher.label}: {error}; {_log(service)}") from error
    return times, tuple(answers), startup


def _log(service: Service) -> str:
    text = service.log()[-2000:]
    return f"its log ends:\n{text}" if text.strip() else "it printed nothing"


def timeline(told: Told) -> dict[str, Any] | None:
    """The timeline at `/startup`, if the service has one."""
    try:
        answer = HttpQuestion(Request(method="GET", path="/startup")).ask(told.url, 10)
        document = json.loads(answer.body)
    except (PrebakeError, ValueError):
        return None
    known = isinstance(document, dict) and {"spans", "marks", "memory"} <= document.keys()
    return document if known else None


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
