"""`prebake check -- COMMAND`: starts a service as `prebake run` does, and shows its timelines and loads."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prebake.adopt import ENV_CHECK, ENV_OFF, checked
from prebake.adopt.catalogue import Catalogue
from prebake.adopt.launch import environment, inherited
from prebake.adopt.loads import FAILED, FOLDER, MAPPED, Load
from prebake.baked import layout
from prebake.commands.check_output import conclude, drifted, write, write_reports
from prebake.commands.service_arguments import questions_of, ready_of, refuse_others, refuse_seconds
from prebake.documents.columns import columns
from prebake.errors import ConfigError, PrebakeError
from prebake.startup import readahead
from prebake.telemetry import report
from prebake.telemetry.budget import Budget, Start, exceeded
from prebake.telemetry.project import Project
from prebake.telemetry.services import find_service
from prebake.watching import proc
from prebake.watching.presets import Preset
from prebake.watching.process import WatchedProcess, ended_by_signals
from prebake.watching.questions import Question, send
from prebake.watching.readiness import Ready, Told, ending, unready, wait
from prebake.watching.statements import UNPREPARED, Statement, collect

NO_LOAD = "no load of a model was seen: a request may make the service load one (--request)"
_SAMPLED = 0.25
"""Seconds between two looks at the memory."""


@dataclass(frozen=True, kw_only=True)
class _Checked:
    """What one start of the service gave."""

    start: Start
    told: str
    statements: Sequence[Statement]

    @property
    def loads(self) -> list[tuple[int, Load]]:
        """Process id and load."""
        return [(statement.pid, load) for statement in self.statements for load in statement.loads]

    @property
    def main(self) -> Statement | None:
        """The process that loaded longest; without loads, the first that imported a framework."""
        known = [statement for statement in self.statements if statement.timeline is not None]
        return max(known, key=lambda each: sum(load.seconds for load in each.loads), default=None)


def check_service(
    options: argparse.Namespace, project: Project, command: Sequence[str], budget: Budget, baseline: Start | None
) -> int:
    """Run the check; the exit code."""
    refuse_seconds(options, "timeout")
    ready = ready_of(options, project)()
    given = questions_of(options, project)
    refuse_others(ready)
    with tempfile.TemporaryDirectory(prefix="prebake-check.") as folder, ended_by_signals():
        env = _environment(options, Path(folder))
        with WatchedProcess(command, env, echo=True) as service:
            told = _until_ready(service, ready, options.timeout)
            checked_ = _measured(service, told, given or _preset(options, told), Path(folder))
    if options.record_reads:
        _write_reads(options.record_reads, checked_.statements)
    findings = exceeded(checked_.start, budget, baseline)
    drift = drifted(Catalogue.read(options.root).models)
    strict = [*_unmapped(checked_.loads), *(f"version drift: {line}" for line in drift)] if options.strict else []
    _print(options, checked_, _document(checked_, findings, drift))
    if not options.strict:
        for line in drift:
            print(f"prebake: version drift: {line}", file=sys.stderr)
    return conclude(findings, strict, warn_only=options.warn_only)


def _environment(options: argparse.Namespace, folder: Path) -> dict[str, str]:
    given = inherited()
    if given.get(ENV_OFF) == "0":
        raise ConfigError(f"{ENV_OFF}=0 turns off what is to be checked: unset it")
    if options.record_reads:
        (folder / checked.RECORD).touch()
        given.pop(readahead.ENV, None)  # what is read ahead would be recorded too
    env = environment(given, root=options.root)
    if options.allow:
        env[layout.ENV_ALLOW] = ",".join(filter(None, [env.get(layout.ENV_ALLOW), *options.allow]))
    return {**env, ENV_CHECK: str(folder), "PYTHONUNBUFFERED": "1"}


class _FailedError(PrebakeError):
    """The service was not ready in time, or has ended; the exit code is its own if it ended with an error."""

    def __init__(self, message: str, code: int | None) -> None:
        super().__init__(message)
        self.exit_code = 1 if not code else code if code > 0 else 128 - code


@dataclass(frozen=True, kw_only=True)
class _Ready:
    """A service that became ready."""

    told: Told
    launched: float
    """`time.monotonic` of the launch."""
    seconds: float
    peak: int
    """Bytes, of a job that has ended; 0 before."""


def _until_ready(service: WatchedProcess, ready: Ready, timeout: float) -> _Ready:
    """Raises _FailedError."""
    launched, peak, looked = time.monotonic(), 0, 0.0

    def look() -> None:
        nonlocal peak, looked
        if time.monotonic() - looked > _SAMPLED:
            looked = time.monotonic()
            peak = max(peak, _peak(service))

    waited = wait(service, ready, timeout, meanwhile=look)
    if waited.told is None:
        raise _FailedError(f"the service {unready(service, waited, timeout)}", service.exit_code())
    return _Ready(told=waited.told, launched=launched, seconds=waited.seconds, peak=peak)


def _measured(service: WatchedProcess, ready: _Ready, questions: Sequence[Question], folder: Path) -> _Checked:
    (folder / checked.READY).touch()
    try:
        answered = _ask(ready.told, questions)
    except PrebakeError as error:
        service.settle()
        if service.exit_code():
            raise _FailedError(f"{error}; {_ended(service)}", service.exit_code()) from error
        raise
    service.settle()
    if service.exit_code():
        raise _FailedError(_ended(service), service.exit_code())
    peak = max(ready.peak, _peak(service))
    statements = collect(folder, lambda: proc.session(service.pid))
    marks = {"ready": ready.launched + ready.seconds} | ({"first_answer": answered} if answered else {})
    return _Checked(
        start=Start(ready=ready.seconds, first_answer=answered and answered - ready.launched, peak_memory=peak),
        told=ready.told.how,
        statements=[statement.marked(**marks) for statement in statements],
    )


def _ask(told: Told, questions: Sequence[Question]) -> float | None:
    """Send the requests: `time.monotonic` of the first answer; None if there are none."""
    answered = None
    for question in questions:
        send(question, told.url)
        answered = answered or time.monotonic()
    return answered


def _ended(service: WatchedProcess) -> str:
    return f"the service ended with {ending(service.exit_code() or 0)} after it was ready"


def _peak(service: WatchedProcess) -> int:
    memory = service.memory()
    return 0 if memory is None else memory.peak


def _preset(options: argparse.Namespace, ready: _Ready) -> Sequence[Question]:
    installed = find_service(options.service)
    return [] if installed is None else Preset(installed, options.service)(ready.told)


def _write_reads(path: Path, statements: Sequence[Statement]) -> None:
    """The list of the process that read most: of several workers, one list serves all."""
    texts = [statement.reads for statement in statements if statement.reads]
    if not texts:
        raise PrebakeError(f"--record-reads {path}: no Python process of the service told what it read")
    write(path, max(texts, key=len))


def _unmapped(loads: Sequence[tuple[int, Load]]) -> list[str]:
    """One sentence for each model that was not mapped."""
    found = []
    for _, load in loads:
        if load.outcome == FAILED:
            found.append(f"{load.subject}: failed to load: {load.reason}")
        elif load.outcome == FOLDER:
            found.append(f"{load.model}: was not mapped: {load.reason}")
        elif load.outcome != MAPPED and load.class_ is not None:
            why = f": {load.obstacle}" if load.obstacle else f" ({load.reason}): add it to models.toml and bake it"
            found.append(f"{load.subject}: is not baked{why}")
    return list(dict.fromkeys(found))


def _print(options: argparse.Namespace, checked_: _Checked, document: Mapping[str, Any]) -> None:
    main = checked_.main
    if main is not None and main.timeline is not None:
        write_reports(options, checked_.start, main.timeline, main.document())
    elif options.trace or options.html:
        raise PrebakeError("no process of the service imported a framework: there is no timeline to write")
    elif options.save:
        write(options.save, checked_.start.text)
    if options.json:
        print(json.dumps(document, indent=2, ensure_ascii=False))
        return
    if main is not None and main.timeline is not None:
        print(f"process {main.pid}: {main.program}\n{report.text(main.timeline)}")
    print("\n".join([*_load_lines(checked_), "", _headline(checked_)]))


def _load_lines(checked_: _Checked) -> list[str]:
    if not checked_.loads:
        return [NO_LOAD if checked_.statements else UNPREPARED]
    rows: list[tuple[str, ...]] = [("process", "model", "source", "outcome", "seconds", "reason")]
    for pid, load in checked_.loads:
        rows.append((str(pid), load.model or "-", load.subject, load.outcome, f"{load.seconds:.3f}", load.reason or ""))
    return columns(rows, right=(0, 4))


def _headline(checked_: _Checked) -> str:
    start = checked_.start
    answered = "" if start.first_answer is None else f", first answer after {start.first_answer:.2f} s"
    number = sum(load.outcome == MAPPED for _, load in checked_.loads)
    return (
        f"ready after {start.ready:.2f} s ({checked_.told}){answered}; peak memory {start.peak_memory / 1e6:,.0f} MB; "
        f"{number} of {len(checked_.loads)} loads mapped"
    )


def _document(checked_: _Checked, findings: Sequence[str], drift: Sequence[str]) -> dict[str, Any]:
    return {
        "format": 1,
        "start": checked_.start.to_dict(),
        "ready": checked_.told,
        "loads": [{"pid": pid, **load.to_dict()} for pid, load in checked_.loads],
        "processes": [
            {"pid": each.pid, "program": each.program, **each.document()}
            for each in checked_.statements
            if each.timeline is not None
        ],
        "over_budget": list(findings),
        "drift": list(drift),
        "not_mapped": _unmapped(checked_.loads),
    }
