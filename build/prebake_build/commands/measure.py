"""`prebake measure`: compares the starts of two services."""

from __future__ import annotations

import argparse
import shlex
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake.commands.service_arguments import (
    add_command,
    add_questions,
    add_readiness,
    assignments,
    given_command,
    questions_of,
    ready_of,
    refuse_others,
    refuse_seconds,
)
from prebake.errors import ConfigError
from prebake.telemetry.project import Project, read_project
from prebake.telemetry.services import find_service
from prebake.watching.presets import Preset
from prebake.watching.process import ended_by_signals
from prebake.watching.questions import Question
from prebake.watching.readiness import Told
from prebake_build.measure import report as reports
from prebake_build.measure.compare import Ask, Comparison, Launcher, compare
from prebake_build.measure.processes import ProcessLauncher, with_interpreter
from prebake_build.measure.verdict import findings, notes, table

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake measure --root models -- uvicorn app:app    the command as it is, against `prebake run -- COMMAND`
  prebake measure                                     the same with command, ready and requests of prebake.toml
  prebake measure --image mine:baked --baseline mine:plain --ready /health --request 'POST /caption @cat.jpg'
  prebake measure --image mine:baked --baseline mine:plain --no-baseline-sealed --env LOG=info
  prebake measure --command 'python new.py --port {port}' --baseline-command 'python old.py --port {port}'
  prebake measure --until-exit --result out -- python worker.py --results out     a job without HTTP, to its end

{port} stands for a free port; without it, the ports on which the service listens are found.
Exit codes: 0 within the limits; 1 a limit missed, or a service that did not start; 2 wrong use.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "measure", help="start two services in turn and compare them", epilog=_EPILOG,
        description="Start two services in turn, time each from outside, and compare time to ready, the first answer, "
        "later ones, and memory.",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    _add_containers(parser.add_argument_group("containers"))
    processes = parser.add_argument_group("plain processes")
    processes.add_argument("--command", dest="candidate_command", metavar="CMD", help="command of the service")
    processes.add_argument("--baseline-command", metavar="CMD", help="command of the service to compare with")
    processes.add_argument("--root", type=Path, metavar="DIR",
                           help="folder of baked models for -- COMMAND (default: PREBAKE_ROOT)")  # fmt: skip
    add_command(parser)
    add_readiness(parser.add_argument_group("readiness"))
    asked = parser.add_argument_group("requests (default: those of prebake.toml, or of the installed service)")
    add_questions(asked)
    asked.add_argument("--service", metavar="NAME", help="an installed service, or MODULE:OBJECT")
    asked.add_argument("--result", action="append", default=[], type=Path, metavar="PATH",
                       help="file or folder that the service writes, compared like an answer; repeatable")  # fmt: skip
    asked.add_argument("--tolerance", type=float, metavar="X",
                       help="compare answers as JSON, with numbers that may differ by this part "
                       "(default: they must be equal byte for byte)")  # fmt: skip
    asked.add_argument("--any-answer", action="store_true", help="answers may differ")
    parser.add_argument("--env", action="append", default=[], metavar="NAME=VALUE", help="variable for both services")
    parser.add_argument("--rounds", type=int, default=5, help="measured starts of each service (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="limit for one start (default: %(default)g s)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write startup.html and startup.json there")
    _add_limits(parser.add_argument_group("limits (medians decide)"))
    parser.set_defaults(run=_run)


def _add_containers(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--image", metavar="IMAGE", help="image of the service")
    group.add_argument("--baseline", metavar="IMAGE", help="image of the service to compare with")
    group.add_argument("--port", type=int, help="port in both containers (default: the only exposed one, else 8000)")
    for side, which in (("", "image"), ("baseline-", "baseline")):
        group.add_argument(
            f"--{side}sealed", action=argparse.BooleanOptionalAction, default=None,
            help=f"start the {which} with a read-only root, no capabilities and no new privileges (default: try so, "
            "and say where it has to be left)",
        )  # fmt: skip
    group.add_argument("--volume", action="append", default=[], metavar="HOST:CONTAINER[:ro]", help="mounted in both")
    group.add_argument(
        "--docker-option", action="append", default=[], metavar="NAME=VALUE",
        help="option of the Docker SDK's containers.create for both, such as mem_limit=2g; VALUE is JSON or text",
    )  # fmt: skip
    for which in ("image", "baseline"):
        group.add_argument(f"--{which}-docker-option", action="append", default=[], metavar="NAME=VALUE",
                           help=f"the same for the {which} alone")  # fmt: skip


def _add_limits(limits: argparse._ArgumentGroup) -> None:
    limits.add_argument("--shorter", type=float, default=30, metavar="PERCENT",
                        help="minimum reduction of the time to ready (default: 30)")  # fmt: skip
    limits.add_argument("--memory-above", type=float, default=20, metavar="PERCENT",
                        help="maximum increase of peak memory (default: 20)")  # fmt: skip
    limits.add_argument("--first-request", type=float, default=5, metavar="S",
                        help="maximum response time of the first request (default: 5)")  # fmt: skip


def _run(options: argparse.Namespace) -> int:
    if options.rounds < 1:
        raise ConfigError(f"--rounds: expected at least 1, found {options.rounds}")
    refuse_seconds(options, "timeout")
    project = read_project(Path())
    ask = Ask(ready=ready_of(options, project), questions=_questions(options, project), results=options.result)
    with tempfile.TemporaryDirectory(prefix="prebake-measure.") as folder, ended_by_signals():
        baseline, candidate = _launchers(options, project, Path(folder, "report"))
        refuse_others(ask.ready())
        comparison = compare(baseline, candidate, ask, rounds=options.rounds, timeout=options.timeout,
                             tolerance=options.tolerance)  # fmt: skip
    print(table(comparison) + "\n")
    if options.output:
        _write(comparison, options.output)
    missed = findings(comparison, shorter=options.shorter, memory_above=options.memory_above,
                      first_request=options.first_request, any_answer=options.any_answer)  # fmt: skip
    for finding in missed:
        print(f"prebake: missed: {finding}", file=sys.stderr)
    print("\n".join([*notes(comparison), reports.summary(comparison)]))
    return 1 if missed else 0


def _questions(options: argparse.Namespace, project: Project) -> Callable[[Told], Sequence[Question]]:
    given = questions_of(options, project)
    if given and options.service:
        raise ConfigError("--service and --request exclude each other")
    service = None if given else find_service(options.service)
    return (lambda told: given) if service is None else Preset(service, options.service)


def _launchers(options: argparse.Namespace, project: Project, report: Path) -> tuple[Launcher, Launcher]:
    images, commands = (options.baseline, options.image), (options.baseline_command, options.candidate_command)
    environment = assignments(options.env, "--env")
    if options.ready_line:
        environment.setdefault("PYTHONUNBUFFERED", "1")  # a line must not wait in a buffer
    ways = [any(images), any(commands), bool(given_command(options))]
    if all(images) and sum(ways) == 1:
        return _containers(options, project, environment)
    if all(commands) and sum(ways) == 1:
        return _processes([shlex.split(command) for command in commands], ("baseline", "baked"), environment)
    command = given_command(options) or (None if any(ways) else project.command)
    if command and not any(images) and not any(commands):
        root = [] if options.root is None else ["--root", str(options.root)]
        under = ["prebake", "run", *root, "--", *with_interpreter(command)]
        return _processes([command, under], ("plain", "baked"), environment, report)
    raise ConfigError(
        "give either --image and --baseline, or --command and --baseline-command, or -- COMMAND (or `command` in "
        "prebake.toml), which is compared with `prebake run -- COMMAND`"
    )


def _containers(
    options: argparse.Namespace, project: Project, environment: dict[str, str]
) -> tuple[Launcher, Launcher]:
    from prebake_build.images.engine import open_engine
    from prebake_build.measure.container_options import merged
    from prebake_build.measure.containers import ContainerLauncher

    both = [f"environment={name}={value}" for name, value in environment.items()]
    both += [f"volumes={_absolute(volume)}" for volume in options.volume]
    sides = {side: merged([*both, *options.docker_option, *getattr(options, f"{side}_docker_option")])
             for side in ("baseline", "image")}  # fmt: skip
    client = open_engine()
    port = options.port or project.port
    return (
        ContainerLauncher(
            client, options.baseline, "baseline", port=port, sealed=options.baseline_sealed, **sides["baseline"]
        ),
        ContainerLauncher(client, options.image, "baked", port=port, sealed=options.sealed, **sides["image"]),
    )


def _absolute(volume: str) -> str:
    """A relative folder of the host made absolute; the engine would take it for the name of a volume."""
    host, colon, rest = volume.partition(":")
    if not colon:
        raise ConfigError(f'--volume: expected HOST:CONTAINER or HOST:CONTAINER:ro, found "{volume}"')
    return f"{Path(host).absolute() if '/' in host or host.startswith('.') else host}:{rest}"


def _processes(
    commands: Sequence[Sequence[str]], labels: tuple[str, str], environment: dict[str, str], report: Path | None = None
) -> tuple[Launcher, Launcher]:
    for command in commands:
        if not command:
            raise ConfigError("--command and --baseline-command: expected a program and its arguments, found nothing")
    baseline, candidate = zip(labels, commands, strict=True)
    return ProcessLauncher(*baseline, environment), ProcessLauncher(*candidate, environment, report=report)


def _write(comparison: Comparison, folder: Path) -> None:
    title = "Prebake: what a start costs"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in (
            ("startup.html", reports.to_html(comparison, title)),
            ("startup.json", reports.to_json(comparison, title)),
        ):
            (folder / name).write_text(text, encoding="utf-8")
            print(f"Wrote {folder / name}.", file=sys.stderr)
    except OSError as error:
        raise ConfigError(f"{folder}: cannot write the report: {error.strerror}") from error
