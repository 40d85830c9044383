"""The runtime's subcommands: serve, check and inspect."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake import deferred, layout, quickstart, readahead, report, timeline
from prebake.budget import Budget, Start, exceeded, parse_size
from prebake.errors import ConfigError
from prebake.families import find_models
from prebake.models import Models

if TYPE_CHECKING:
    from prebake.recorder import Recorder

    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add(commands: Commands) -> None:
    """Add the three to the command line."""
    _add_serve(commands)
    _add_check(commands)
    _add_inspect(commands)


def _subcommand(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    return commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}", formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip


def _root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", type=Path, default=layout.default_root(),
                        help=f"folder of baked models (default: {layout.ENV_ROOT}, now %(default)s)")  # fmt: skip


def _add_serve(commands: Commands) -> None:
    parser = _subcommand(commands, "serve", "answer about images over HTTP while the models load",
                         "prebake serve --root models --port 8000")  # fmt: skip
    _root(parser)
    parser.add_argument(
        "--host", default="127.0.0.1", help="address to listen on (default: %(default)s; images use 0.0.0.0)"
    )
    parser.add_argument("--port", type=int, default=layout.DEFAULT_PORT, help="default: %(default)s")
    parser.add_argument("--verify", choices=("size", "full"), default="size",
                        help="before a load: compare sizes (default), or hash every file")  # fmt: skip
    parser.add_argument("--lazy", action="store_true", help="load each model when it is first asked for")
    parser.add_argument(
        "--baseline", metavar="FILE", default=os.environ.get(layout.ENV_BASELINE),
        help=f"recorded start that /startup compares with (default: {layout.ENV_BASELINE})",
    )  # fmt: skip
    parser.set_defaults(run=_serve)


def _serve(options: argparse.Namespace) -> int:
    from prebake.idle import WhenIdle
    from prebake.service import Application, serve

    models = Models(options.root, verify=options.verify)
    baseline = Start.read(Path(options.baseline)) if options.baseline else None
    quickstart.begin()
    begin = (lambda: None) if options.lazy else models.start
    application = Application(models, lazy=options.lazy, idle=WhenIdle(), baseline=baseline)
    serve(application, host=options.host, port=options.port, begin=begin)
    return 0


def _add_check(commands: Commands) -> None:
    parser = _subcommand(
        commands, "check", "start every model, show where the time went, and hold it against a budget",
        "prebake check --root models --ready 3 --first-answer 5 --peak-memory '1.5 GB'",
    )  # fmt: skip
    _root(parser)
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument(
        "--trace", type=Path, metavar="FILE", help="write the timeline for chrome://tracing or Perfetto"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="write the timeline, drawn, and all else as a page")
    parser.add_argument("--budget", metavar="FILE", default=os.environ.get(layout.ENV_BUDGET),
                        help=f"TOML file of limits (default: {layout.ENV_BUDGET}); options override it")  # fmt: skip
    parser.add_argument("--ready", type=float, metavar="S", help="seconds until all required models are loaded")
    parser.add_argument("--first-answer", type=float, metavar="S", help="seconds until the first answer")
    parser.add_argument("--peak-memory", metavar="SIZE", help='resident memory, such as "1.5 GB"')
    parser.add_argument(
        "--shorter", type=float, metavar="PERCENT", help="how much sooner than the baseline it must be ready"
    )
    parser.add_argument(
        "--memory-above", type=float, metavar="PERCENT", help="how far peak memory may be above the baseline's"
    )
    parser.add_argument("--baseline", type=Path, metavar="FILE", help="recorded start to compare with")
    parser.add_argument("--save", type=Path, metavar="FILE", help="record this start, for a later --baseline")
    parser.add_argument(
        "--record-reads", type=Path, metavar="FILE",
        help=f"write down what this start read from disk; {readahead.ENV}=FILE has later ones read it ahead",
    )  # fmt: skip
    parser.add_argument("--warn-only", action="store_true", help="tell what was exceeded, and exit 0 all the same")
    parser.set_defaults(run=_check)


def _check(options: argparse.Namespace) -> int:
    budget = Budget.read(Path(options.budget)) if options.budget else Budget()
    size = parse_size(options.peak_memory, "--peak-memory") if options.peak_memory else None
    budget = budget.with_limits(ready=options.ready, first_answer=options.first_answer, peak_memory=size,
                                shorter=options.shorter, memory_above=options.memory_above)  # fmt: skip
    baseline = Start.read(options.baseline) if options.baseline else None
    if budget.needs_baseline and baseline is None:
        raise ConfigError("the budget compares with a baseline: name its file with --baseline")
    recorder = _recorder() if options.record_reads else None
    models = start_all(options.root, recorder)
    if recorder:
        _write(options.record_reads, recorder.text(without=[file for baked in models.baked for file in baked.weights]))
    start = Start.of(timeline.process)
    findings = exceeded(start, budget, baseline)
    told = report.document(timeline.process, models.status(), baseline)
    if options.trace:
        _write(options.trace, json.dumps(report.chrome_trace(timeline.process)))
    if options.html:
        from prebake.drawing import startup_page

        _write(options.html, startup_page(told))
    if options.save:
        _write(options.save, start.text)
    if options.json:
        print(json.dumps({"baseline": None} | told | {"start": start.to_dict(), "over_budget": findings}, indent=2))
    else:
        print(report.text(timeline.process))
        print("\n".join(_model_lines(models)))
        print(f"\n{report.headline(told)}")
    for finding in findings:
        print(f"prebake: over budget: {finding}", file=sys.stderr)
    return 1 if findings and not options.warn_only else 0


def _recorder() -> Recorder:
    from prebake.recorder import Recorder

    return Recorder()


def start_all(root: Path, recorder: Recorder | None = None) -> Models:
    """Load every model under the root and answer one question; the timeline has the marks afterwards.

    `recorder` listens meanwhile. Raises the first model's error where one cannot be loaded.
    """
    quickstart.collector.pause()
    if recorder:
        recorder.begin()
        import waitress  # noqa: F401  # a service reads these besides

        import prebake.idle
        import prebake.service  # noqa: F401
    models = Models(root)
    quickstart.begin()
    models.start()
    models.wait()
    timeline.mark(timeline.READY)
    if recorder:
        recorder.ready()
    quickstart.collector.resume()
    _first_answer(models)
    return models


def _first_answer(models: Models) -> None:
    """Ask one of the reference service's models about a picture; other models have no common question."""
    from prebake.analyzer import CAPTION, FLORENCE, OCR, Analyzer, example

    analyzer = Analyzer(models)
    for name, ask in ((CAPTION, analyzer.caption), (OCR, analyzer.read), (FLORENCE, analyzer.florence)):
        if name in models:
            with timeline.span("first answer", name):
                ask(example())
            timeline.mark(timeline.FIRST_ANSWER)
            return


def _model_lines(models: Models) -> list[str]:
    lines = []
    for status in models.status():
        why = f" ({status.fallback_reason})" if status.fallback_reason else ""
        lines.append(f"{status.name}: {status.tier} in {status.seconds:.3f} s{why}")
    for package, user in deferred.report().items():
        lines.append(f"deferred: {package}" + (f", imported after all for {user}" if user else ""))
    return lines


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write it: {error.strerror}") from error


def _add_inspect(commands: Commands) -> None:
    parser = _subcommand(commands, "inspect", "show what is in a folder of baked models, or in one of them",
                         "prebake inspect models/caption --tensors")  # fmt: skip
    parser.add_argument("folder", type=Path, nargs="?", default=layout.default_root(), metavar="DIR",
                        help=f"default: {layout.ENV_ROOT}, now %(default)s")  # fmt: skip
    parser.add_argument("--tensors", action="store_true", help="list every tensor")
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> int:
    from prebake.families import BakedModel
    from prebake.inspection import describe, lines

    folder: Path = options.folder
    is_model = (folder / layout.MANIFEST).exists()
    models = [BakedModel.open(folder)] if is_model else find_models(folder)
    documents = [describe(baked, tensors=options.tensors) for baked in models]
    print(json.dumps(documents, indent=2, ensure_ascii=False) if options.json else "\n\n".join(map(lines, documents)))
    return 0
