"""`prebake scan`: starts a service once, sees what it loads, and writes `models.toml`."""

from __future__ import annotations

import argparse
import difflib
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake.commands.service_arguments import (
    add_command,
    add_questions,
    add_readiness,
    command_of,
    questions_of,
    ready_of,
    refuse_others,
    refuse_seconds,
)
from prebake.documents.messages import reason
from prebake.errors import ConfigError
from prebake.startup.compiled import LIST, read_file
from prebake.telemetry.project import read_project
from prebake.watching.statements import UNPREPARED
from prebake_build.files.atomic import write_text
from prebake_build.scanning import numba, report
from prebake_build.scanning.findings import Finding, findings_of
from prebake_build.scanning.pinning import pinned, without_default_dtype
from prebake_build.scanning.revisions import named
from prebake_build.scanning.tables import Merged, merge
from prebake_build.scanning.watch import Seen, watch

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake scan -- uvicorn app:app                           until a port of it answers, then add to models.toml
  prebake scan --ready http://127.0.0.1:8000/health --request 'POST /caption @cat.jpg' -- uvicorn app:app
  prebake scan --seconds 60 --diff -- python worker.py      show what would be added; write nothing
  prebake scan                                              command, ready and requests of prebake.toml

Models that load with the first request are seen only if a request is sent. Tables that are in the file stay as they
are.

Exit codes: 0 models were seen; 1 none was, or the service was not ready, or a request failed (what was seen is written
all the same); 2 wrong use; any other: that with which the service ended.
"""
_NOTHING = (
    "no load of a model was seen: send a request that makes the service load one (--request), or run it longer "
    "(--seconds)"
)


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "scan", help="start a service once, see what it loads, and write models.toml", epilog=_EPILOG,
        description="Start a service once, see which models it loads, and add a table for each to models.toml: source "
        "with the commit that was loaded, class, dtype. Comments say what cannot be baked, and why.",
        formatter_class=HelpFormatter,
        usage="prebake scan [options] -- COMMAND ...",
    )  # fmt: skip
    add_command(parser)
    until = parser.add_argument_group("how long the service runs")
    add_readiness(until)
    until.add_argument("--seconds", type=float, metavar="S", help="run it this long, ready or not")
    until.add_argument("--timeout", type=float, default=600, metavar="S",
                       help="end it if it is not ready by then (default: %(default)g s)")  # fmt: skip
    add_questions(parser.add_argument_group("requests, for services that load lazily"))
    output = parser.add_argument_group("output")
    output.add_argument("--models", type=Path, metavar="FILE", default=Path("models.toml"), help="default: models.toml")
    output.add_argument("--diff", action="store_true", help="print what would change in the file; write nothing")
    output.add_argument("--print", action="store_true", help="print the file as it would be; write nothing")
    output.add_argument("--json", action="store_true", help="print what was seen as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.diff + options.print + options.json > 1:
        raise ConfigError("--diff, --print and --json exclude each other")
    refuse_seconds(options, "seconds", "timeout")
    project = read_project(Path())
    command = command_of(options, project, "prebake scan -- uvicorn app:app")
    ready = ready_of(options, project)()
    questions = questions_of(options, project)
    before, list_ = _read(options.models), options.models.with_name(LIST)
    listed = read_file(list_)
    merge(before, [], str(options.models))  # a file that is wrong is told before the service is started
    if options.seconds is None:
        refuse_others(ready)
    seen = watch(command, ready, questions, seconds=options.seconds, timeout=options.timeout)
    base = options.models.parent.absolute()
    findings = [without_default_dtype(found, base) for found in named(pinned(findings_of(seen.loads, base)))]
    merged = merge(before, findings, str(options.models))
    _tell(options, seen, findings, merged, before)
    _tell_compiled(options, seen.compiled, list_, listed)
    for line in [*merged.notes, *(f"numba: {note}" for note in seen.compiled.notes), *seen.problems]:
        print(f"prebake: {line}", file=sys.stderr)
    loaded = any(found.failed is None for found in findings)
    if not findings:
        print(f"prebake: {_NOTHING if seen.prepared else UNPREPARED}", file=sys.stderr)
    return seen.exit_code or (0 if loaded else 1)


def _read(path: Path) -> str:
    if not path.parent.is_dir():
        raise ConfigError(f"{path}: there is no folder {path.parent}: make it, or name another file with --models")
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot read it: {reason(error)}") from error


def _tell(options: argparse.Namespace, seen: Seen, findings: list[Finding], merged: Merged, before: str) -> None:
    path: Path = options.models
    if options.print:
        print(merged.text, end="")
        return
    if options.diff:
        print("".join(_diff(path, before, merged.text)), end="")
        return
    if options.json:
        print(json.dumps(report.document(seen, findings, merged), indent=2, ensure_ascii=False))
    elif findings:
        print(report.text(seen, findings, merged))
    if merged.text == before:
        if findings:
            print(f"{path}: nothing to add.", file=sys.stderr)
        return
    write_text(path, merged.text)
    added = f" with {', '.join(merged.added)}. Next: prebake lock, then prebake init" if merged.added else ""
    print(f"Wrote {path}{added}.", file=sys.stderr)


def _tell_compiled(options: argparse.Namespace, seen: numba.Compiled, path: Path, before: str) -> None:
    """Write the list of numba's functions, if the service compiled one that it lacks."""
    after = numba.merge(before, seen.entries)
    if after == before or options.print:
        return
    if options.diff:
        print("".join(_diff(path, before, after)), end="")
        return
    write_text(path, after)
    print(f"Wrote {path} with what numba compiled: the image's build compiles it once.", file=sys.stderr)


def _diff(path: Path, before: str, after: str) -> list[str]:
    old = before.splitlines(keepends=True)
    return list(difflib.unified_diff(old, after.splitlines(keepends=True), f"a/{path}", f"b/{path}"))
