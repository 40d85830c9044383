"""Starts a service with its loads observed, waits and asks, and ends it."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from prebake.adopt import ENV_CHECK, ENV_OBSERVE, ENV_OFF, ENV_STRICT
from prebake.adopt.hooks.numba import SEEN
from prebake.adopt.launch import environment, inherited
from prebake.adopt.loads import Load
from prebake.baked import layout
from prebake.errors import ConfigError, PrebakeError
from prebake.watching.process import WatchedProcess, ended_by_signals
from prebake.watching.questions import Question, send
from prebake.watching.readiness import AtExit, Ready, Told, Waited, ending, unready, wait
from prebake.watching.statements import prepared
from prebake_build.scanning.findings import read_loads
from prebake_build.scanning.numba import Compiled, read_seen

QUIET = 2.0
"""Seconds without a further load, after readiness and the requests, until the service is ended."""
_LOADS = "loads.jsonl"
_POLL = 0.05


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one start of the service showed."""

    loads: Sequence[Load]
    compiled: Compiled = field(default_factory=Compiled)
    """Of numba."""
    seconds: float
    """From the launch until it was ready, or until it ended or was ended."""
    told: str | None
    """What told that it was ready; None if nothing did."""
    answered: float | None = None
    """Seconds from the launch until all requests were answered; None if there were none."""
    problems: Sequence[str]
    """What went wrong, one sentence each."""
    prepared: bool
    """Whether Prebake was found by any Python process of the service; without it, no load is seen."""
    exit_code: int
    """0, the service's own code if it failed, or 1 for other problems."""


def watch(
    command: Sequence[str], ready: Ready, questions: Sequence[Question], *, seconds: float | None, timeout: float
) -> Seen:
    """Start the command, and end it once it is ready, has answered the questions and loads nothing more.

    With `seconds` it runs that long, ready or not. Raises ConfigError if the command cannot be started.
    """
    with tempfile.TemporaryDirectory(prefix="prebake-scan.") as folder, ended_by_signals():
        observed = Path(folder, _LOADS)
        with WatchedProcess(command, _environment(Path(folder)), echo=True) as service:
            began = time.perf_counter()
            waited, answered, problems, code = _use(service, ready, questions, observed, seconds, timeout)
            took = waited.seconds if waited.told is not None else time.perf_counter() - began
        told = None if waited.told is None else waited.told.how
        return Seen(loads=read_loads(observed), compiled=read_seen(observed.with_name(_LOADS + SEEN)), seconds=took,
                    told=told, answered=answered, problems=problems, prepared=prepared(Path(folder)),
                    exit_code=code or (1 if problems else 0))  # fmt: skip


def _use(
    service: WatchedProcess, ready: Ready, questions: Sequence[Question], observed: Path, seconds: float | None,
    timeout: float,
) -> tuple[Waited, float | None, list[str], int]:  # fmt: skip
    """Wait until it is ready, ask, and wait for further loads.

    Returns also the seconds to the last answer, what went wrong, and the exit code for it.

    Ctrl-C ends the service early, and keeps what was seen.
    """
    began = time.perf_counter()
    waited, answered = Waited(told=None, seconds=0, seen=""), None
    try:
        waited = wait(service, ready, timeout if seconds is None else seconds)
        problems: list[str] = []
        if waited.told is not None and service.alive():
            problems = _ask(waited.told, questions)
            answered = time.perf_counter() - began if questions else None
            if seconds is None:
                service.settle()
                _settle(observed, service.alive)
        if seconds is not None and service.alive():
            wait(service, AtExit(), seconds, started=began)
    except KeyboardInterrupt:
        return waited, answered, ["interrupted"], 130
    code = service.exit_code() or 0
    if code != 0:
        problems.append(f"the service ended with {ending(code)}")
    elif waited.told is None and seconds is None and not waited.ended:
        problems.append(f"the service {unready(service, waited, timeout)}, or say with --seconds how long to run it")
    return waited, answered, problems, code if code >= 0 else 128 - code


def _environment(folder: Path) -> dict[str, str]:
    """As `prebake run` sets it, with loads observed instead of redirected."""
    given = inherited()
    if given.get(ENV_OFF) == "0":
        raise ConfigError(f"{ENV_OFF}=0 turns the hooks off that see the loads: unset it")
    for name in (ENV_STRICT, layout.ENV_ROOT):
        given.pop(name, None)
    added = {ENV_OBSERVE: str(folder / _LOADS), ENV_CHECK: str(folder), "PYTHONUNBUFFERED": "1"}
    return {**environment(given), **added}


def _ask(told: Told, questions: Sequence[Question]) -> list[str]:
    problems = []
    for question in questions:
        try:
            send(question, told.url)
        except PrebakeError as error:
            problems.append(str(error))
    return problems


def _settle(observed: Path, alive: Callable[[], bool]) -> None:
    """Wait until nothing was loaded for `QUIET` seconds, or the service has ended."""
    size, since = -1, time.perf_counter()
    while alive() and time.perf_counter() - since < QUIET:
        now = os.stat(observed).st_size if observed.exists() else 0  # noqa: PTH116
        if now != size:
            size, since = now, time.perf_counter()
        time.sleep(_POLL)
