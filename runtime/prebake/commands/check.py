"""`prebake check`: start every model, show where the time went, and compare it with a budget."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked import layout
from prebake.commands.arguments import add_allow, add_root, subcommand
from prebake.documents.sizes import parse_size
from prebake.errors import ConfigError
from prebake.loading.models import Models
from prebake.startup import deferred, quickstart, readahead
from prebake.telemetry import report, timeline
from prebake.telemetry.budget import Budget, Start, exceeded
from prebake.telemetry.services import Service, find_service
from prebake.tiers.drift import drift

if TYPE_CHECKING:
    from prebake.commands.arguments import Commands
    from prebake.startup.recorder import Recorder


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = subcommand(
        commands, "check", "start every model, show where the time went, and compare it with a budget",
        "prebake check --root models --ready 3 --first-answer 5 --peak-memory '1.5 GB'",
    )  # fmt: skip
    add_root(parser)
    add_allow(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the timeline for chrome://tracing or Perfetto"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the report as an HTML page")
    parser.add_argument("--budget", metavar="FILE", default=os.environ.get(layout.ENV_BUDGET),
                        help=f"TOML file of limits (default: {layout.ENV_BUDGET}); options override it")  # fmt: skip
    parser.add_argument("--ready", type=float, metavar="S", help="seconds until all required models are loaded")
    parser.add_argument("--first-answer", type=float, metavar="S", help="seconds until the first answer")
    parser.add_argument("--peak-memory", metavar="SIZE", help='resident memory, such as "1.5 GB"')
    parser.add_argument(
        "--shorter", type=float, metavar="PERCENT", help="minimum reduction of the time to ready against the baseline"
    )
    parser.add_argument(
        "--memory-above", type=float, metavar="PERCENT", help="maximum increase of peak memory over the baseline"
    )
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="recorded start (from --save) to compare with")
    parser.add_argument("--save", type=Path, metavar="FILE", help="record this start for use as a --baseline")
    parser.add_argument(
        "--record-reads", type=Path, metavar="FILE",
        help=f"record which file ranges this start read; with {readahead.ENV}=FILE later starts read them ahead",
    )  # fmt: skip
    parser.add_argument(
        "--service", metavar="NAME", help="service that gives the first answer: an installed one, or MODULE:OBJECT"
    )
    parser.add_argument(
        "--strict", action="store_true", help="fail if an installed package's version differs from that of a bake"
    )
    parser.add_argument("--warn-only", action="store_true", help="report exceeded limits, but exit 0")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    budget = Budget.read(Path(options.budget)) if options.budget else Budget()
    size = parse_size(options.peak_memory, "--peak-memory") if options.peak_memory else None
    budget = budget.with_limits(ready=options.ready, first_answer=options.first_answer, peak_memory=size,
                                shorter=options.shorter, memory_above=options.memory_above)  # fmt: skip
    baseline = Start.read(options.baseline) if options.baseline else None
    if budget.needs_baseline and baseline is None:
        raise ConfigError("the budget has limits relative to a baseline: pass its file with --baseline")
    service = find_service(options.service)
    recorder = _recorder() if options.record_reads else None
    models = start_all(options.root, service, recorder, options.allow)
    if recorder:
        _write(options.record_reads, recorder.text(without=[file for baked in models.baked for file in baked.weights]))
    start = Start.of(timeline.process)
    findings = exceeded(start, budget, baseline)
    drifted = [line for baked in models.baked for line in drift(baked)]
    told = report.document(timeline.process, models.status(), baseline)
    if options.trace:
        _write(options.trace, json.dumps(report.chrome_trace(timeline.process)))
    if options.html:
        from prebake.telemetry.drawing import startup_page

        _write(options.html, startup_page(told))
    if options.save:
        _write(options.save, start.text)
    if options.json:
        print(
            json.dumps(
                {"baseline": None} | told | {"start": start.to_dict(), "over_budget": findings, "drift": drifted},
                indent=2,
            )
        )
    else:
        print(report.text(timeline.process))
        print("\n".join(_model_lines(models)))
        print(f"\n{report.headline(told)}")
    for finding in findings:
        print(f"prebake: over budget: {finding}", file=sys.stderr)
    if options.strict:
        for line in drifted:
            print(f"prebake: version drift: {line}", file=sys.stderr)
    return 1 if (findings and not options.warn_only) or (drifted and options.strict) else 0


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


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write it: {error.strerror}") from error
