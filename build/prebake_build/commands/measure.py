"""`prebake measure`: compares the starts of two services."""

from __future__ import annotations

import argparse
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.errors import ConfigError
from prebake.telemetry.services import Request, find_service
from prebake_build.measure import report
from prebake_build.measure.compare import Ask, Comparison, Launcher, compare, findings, table

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake measure --image prebake:latest --baseline prebake-baseline:latest
  prebake measure --command 'prebake serve --port {port}' --baseline-command 'python app.py --port {port}' \\
                  --request 'POST /caption @picture.jpg'      as plain processes, without Docker

Exit codes: 0 within the limits; 1 a limit missed, or a service that did not start; 2 wrong use.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "measure", help="start two services in turn and compare them", epilog=_EPILOG,
        description="Start two services in turn, time each from outside, and compare time to ready, the first answer, "
        "later ones, and memory.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    containers = parser.add_argument_group("containers")
    containers.add_argument("--image", metavar="IMAGE", help="image of the service")
    containers.add_argument("--baseline", metavar="IMAGE", help="image of the service to compare with")
    processes = parser.add_argument_group("plain processes ({port} stands for a free port)")
    processes.add_argument("--command", dest="candidate_command", metavar="CMD", help="command of the service")
    processes.add_argument("--baseline-command", metavar="CMD", help="command of the service to compare with")
    asked = parser.add_argument_group("the request (default: that of the installed service)")
    asked.add_argument("--request", metavar="'METHOD PATH [@FILE]'", help="one request; @FILE is its body")
    asked.add_argument("--service", metavar="NAME", help="an installed service, or MODULE:OBJECT")
    parser.add_argument("--rounds", type=int, default=5, help="measured starts of each service (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="limit for one start (default: %(default)g s)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write startup.html and startup.json there")
    limits = parser.add_argument_group("limits (medians decide)")
    limits.add_argument(
        "--shorter",
        type=float,
        default=30,
        metavar="PERCENT",
        help="minimum reduction of the time to ready (default: 30)",
    )
    limits.add_argument(
        "--memory-above",
        type=float,
        default=20,
        metavar="PERCENT",
        help="maximum increase of peak memory (default: 20)",
    )
    limits.add_argument(
        "--first-request",
        type=float,
        default=5,
        metavar="S",
        help="maximum response time of the first request (default: 5)",
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.rounds < 1:
        raise ConfigError(f"--rounds: expected at least 1, found {options.rounds}")
    ask = _question(options)
    baseline, candidate = _launchers(options)
    comparison = compare(baseline, candidate, ask, rounds=options.rounds, timeout=options.timeout)
    print(table(comparison) + "\n")
    if options.output:
        _write(comparison, options.output)
    missed = findings(comparison, shorter=options.shorter, memory_above=options.memory_above,
                      first_request=options.first_request)  # fmt: skip
    for finding in missed:
        print(f"prebake: missed: {finding}", file=sys.stderr)
    print(report.summary(comparison))
    return 1 if missed else 0


def _question(options: argparse.Namespace) -> Ask:
    if options.request:
        request = _parse_request(options.request)
        return lambda models: request
    service = find_service(options.service)
    if service is None:
        raise ConfigError(
            'no service is installed that names a question: name one with --request "METHOD PATH [@FILE]"'
        )
    return service.request


def _parse_request(text: str) -> Request:
    """`GET /health`, or `POST /caption @picture.jpg`. Raises ConfigError."""
    method, _, rest = text.partition(" ")
    path, _, file = rest.strip().partition(" ")
    if not method.isalpha() or not path.startswith("/") or (file and not file.startswith("@")):
        raise ConfigError(
            f'--request: expected "METHOD PATH [@FILE]", such as "POST /caption @cat.jpg", found "{text}"'
        )
    try:
        return Request(method=method.upper(), path=path, body=Path(file[1:]).read_bytes() if file else None)
    except OSError as error:
        raise ConfigError(f"--request: cannot read {file[1:]}: {error.strerror}") from error


def _launchers(options: argparse.Namespace) -> tuple[Launcher, Launcher]:
    images, commands = (options.baseline, options.image), (options.baseline_command, options.candidate_command)
    if all(images) and not any(commands):
        from prebake_build.images.engine import open_engine
        from prebake_build.measure.containers import ContainerLauncher

        client = open_engine()
        return ContainerLauncher(client, options.baseline, "baseline"), ContainerLauncher(
            client, options.image, "baked"
        )
    if all(commands) and not any(images):
        from prebake_build.measure.processes import ProcessLauncher

        for command in commands:
            if "{port}" not in command:
                raise ConfigError(f'"{command}": expected {{port}} in place of the service\'s port')
        return (ProcessLauncher("baseline", shlex.split(options.baseline_command)),
                ProcessLauncher("baked", shlex.split(options.candidate_command)))  # fmt: skip
    raise ConfigError("give either --image and --baseline, or --command and --baseline-command")


def _write(comparison: Comparison, folder: Path) -> None:
    title = "Prebake: what a start costs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("startup.html", report.to_html(comparison, title)),
            ("startup.json", report.to_json(comparison, title)),
        ):
            (folder / name).write_text(text, encoding="utf-8")
            print(f"Wrote {folder / name}.", file=sys.stderr)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write the report: {error.strerror}") from error
