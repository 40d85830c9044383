"""`prebake check`: start every model, or a service, show where the time went, and compare it with a budget."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked import layout
from prebake.commands.arguments import HelpFormatter, add_allow, add_root
from prebake.commands.check_output import conclude, drifted, write, write_reports
from prebake.commands.service_arguments import READY, add_command, add_questions, add_readiness, given_command
from prebake.documents.sizes import parse_size
from prebake.errors import ConfigError
from prebake.loading.models import Models
from prebake.startup import deferred, quickstart, readahead
from prebake.telemetry import report, timeline
from prebake.telemetry.budget import Budget, Start, exceeded
from prebake.telemetry.project import Project, read_project
from prebake.telemetry.services import Service, find_service

if TYPE_CHECKING:
    from prebake.commands.arguments import Commands
    from prebake.startup.recorder import Recorder


_EPILOG = """\
examples:
  prebake check --root models --ready 3 --first-answer 5 --peak-memory '1.5 GB'      the models alone
  prebake check -- uvicorn app:app --port 8000         the service, started as `prebake run` starts it
  prebake check --ready /health --request 'POST /caption @cat.jpg' --strict -- uvicorn app:app
  prebake check --record-reads reads -- python -m app  also what FastAPI and the service's own modules read
  prebake check                                        with command, ready, requests and budget of prebake.toml

Exit codes: 0 within the limits; 1 over budget, or with --strict a load that was not mapped; 2 wrong use; with a
command, that with which it ended.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "check", help="start every model, or a service, show where the time went, and compare it with a budget",
        description="Start every model, or a service with its models, show where the time went, and compare it with a "
        "budget.",
        epilog=_EPILOG, formatter_class=HelpFormatter,
        usage="prebake check [options] [-- COMMAND ...]",
    )  # fmt: skip
    add_root(parser)
    add_allow(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the timeline for chrome://tracing or Perfetto"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as an HTML page")
    parser.add_argument("--save", type=Path, metavar="FILE", help="record this start for use as a --baseline")
    parser.add_argument(
        "--record-reads", type=Path, metavar="FILE",
        help=f"record which file ranges this start read; with {readahead.ENV}=FILE later starts read them ahead",
    )  # fmt: skip
    parser.add_argument(
        "--service", metavar="NAME", help="service that gives the first answer: an installed one, or MODULE:OBJECT"
    )
    parser.add_argument("--warn-only", action="store_true", help="report exceeded limits, but exit 0")
    parser.add_argument(
        "--strict", action="store_true",
        help="fail if a model was not mapped, or an installed package's version differs from that of a bake",
    )  # fmt: skip
    _add_limits(parser.add_argument_group("limits"))
    service = parser.add_argument_group("with a command (see also --ready)")
    add_readiness(service, ready=False)
    add_questions(service)
    service.add_argument("--timeout", type=float, default=600, metavar="S",
                         help="end the service if it is not ready by then (default: %(default)g s)")  # fmt: skip
    service.add_argument("--models-only", action="store_true", help="start the models alone, though there is a command")
    add_command(parser)
    parser.set_defaults(run=_check)


def _add_limits(limits: argparse._ArgumentGroup) -> None:
    limits.add_argument(
        "--budget", metavar="FILE", default=os.environ.get(layout.ENV_BUDGET),
        help=f"TOML file of limits (default: {layout.ENV_BUDGET}, else that of prebake.toml); options override it",
    )  # fmt: skip
    limits.add_argument("--ready", action="append", default=[], metavar="S|WHAT",
                        help=f"seconds until all required models are loaded; with a command also {READY}")  # fmt: skip
    limits.add_argument("--first-answer", type=float, metavar="S", help="seconds until the first answer")
    limits.add_argument("--peak-memory", metavar="SIZE", help='resident memory, such as "1.5 GB"')
    limits.add_argument(
        "--shorter", type=float, metavar="PERCENT", help="minimum reduction of the time to ready against the baseline"
    )
    limits.add_argument(
        "--memory-above", type=float, metavar="PERCENT", help="maximum increase of peak memory over the baseline"
    )
    limits.add_argument("--baseline", type=Path, metavar="FILE", help="recorded start (from --save) to compare with")


def _check(options: argparse.Namespace) -> int:
    project = read_project(Path())
    command = () if options.models_only else given_command(options) or project.command or ()
    if options.service_command and not command and not options.models_only:
        raise ConfigError("expected a command after --, such as `prebake check -- uvicorn app:app` (without --, the "
                          "models alone are started)")  # fmt: skip
    _split_ready(options, with_command=bool(command))
    budget = _budget(options, project)
    baseline = Start.read(options.baseline) if options.baseline else None
    if budget.needs_baseline and baseline is None:
        raise ConfigError("the budget has limits relative to a baseline: pass its file with --baseline")
    if command:
        from prebake.commands.check_service import check_service

        return check_service(options, project, command, budget, baseline)
    return _check_models(options, budget, baseline)


def _split_ready(options: argparse.Namespace, *, with_command: bool) -> None:
    """`--ready` is a limit in seconds, and with a command also what tells readiness: sets `limit` and `ready`."""
    options.limit, places = None, []
    for text in options.ready:
        try:
            options.limit = float(text)
        except ValueError:
            places.append(text)
    if places and not with_command:
        raise ConfigError(f'--ready: expected a number of seconds, found "{places[0]}" (there is no command after --)')
    if len(places) > 1:
        raise ConfigError(f'--ready: "{places[0]}" and "{places[1]}" exclude each other')
    options.ready = places[0] if places else None


def _budget(options: argparse.Namespace, project: Project) -> Budget:
    budget = Budget.read(Path(options.budget)) if options.budget else project.budget or Budget()
    size = parse_size(options.peak_memory, "--peak-memory") if options.peak_memory else None
    return budget.with_limits(ready=options.limit, first_answer=options.first_answer, peak_memory=size,
                              shorter=options.shorter, memory_above=options.memory_above)  # fmt: skip


def _check_models(options: argparse.Namespace, budget: Budget, baseline: Start | None) -> int:
    service = find_service(options.service)
    recorder = _recorder() if options.record_reads else None
    models = start_all(options.root, service, recorder, options.allow)
    if recorder:
        write(options.record_reads, recorder.text(without=[file for baked in models.baked for file in baked.weights]))
    start = Start.of(timeline.process)
    findings = exceeded(start, budget, baseline)
    drift = drifted(models.baked)
    strict = [f"{status.name}: was not mapped: {status.fallback_reason}" for status in models.status()
              if status.tier not in (None, "mapped")] + [f"version drift: {line}" for line in drift]  # fmt: skip
    told = report.document(timeline.process, models.status(), baseline)
    write_reports(options, start, timeline.process, told)
    if options.json:
        found = {"start": start.to_dict(), "over_budget": findings, "drift": drift}
        print(json.dumps({"baseline": None} | told | found, indent=2))
    else:
        print(report.text(timeline.process))
        print("\n".join(_model_lines(models)))
        print(f"\n{report.headline(told)}")
    return conclude(findings, strict if options.strict else [], warn_only=options.warn_only)


def _recorder() -> Recorder:
    from prebake.startup.recorder import Recorder

    return Recorder()


def start_all(
    root: Path, service: Service | None = None, recorder: Recorder | None = None, allow: Sequence[str] = ()
) -> Models:
    """Load every model under the root, have the service answer once, and set the timeline's marks.

    Without a service that uses them, each model is warmed up, and the first such call is the first answer. `recorder`
    records the reads; `allow` is passed to `Models`. If models fail to load or to warm up, raises the first error.
    """
    quickstart.collector.pause()
    if recorder:
        recorder.begin()
        for module in service.modules if service else ():
            import_module(module)
    models = Models(root, allow=allow)
    quickstart.begin()
    models.start()
    models.wait()
    timeline.mark(timeline.READY)
    if recorder:
        recorder.ready()
    quickstart.collector.resume()
    if service and service.answer(models):
        timeline.mark(timeline.FIRST_ANSWER)
    else:
        _warm_up(models)
    return models


def _warm_up(models: Models) -> None:
    for baked in models.baked:
        if baked.manifest.loading.warmup is not None:
            with timeline.span("warm up", baked.name):
                models[baked.name].warm_up()
            timeline.mark(timeline.FIRST_ANSWER)


def _model_lines(models: Models) -> list[str]:
    lines = []
    for status in models.status():
        why = f" ({status.fallback_reason})" if status.fallback_reason else ""
        lines.append(f"{status.name}: {status.tier} in {status.seconds:.3f} s{why}")
    for package, user in deferred.report().items():
        lines.append(f"deferred: {package}" + (f", imported for {user}" if user else ""))
    return lines
