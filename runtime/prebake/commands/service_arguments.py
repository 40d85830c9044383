"""Arguments of the commands that start somebody's service: `check`, `scan` and `measure`.

Options come before the settings of the project in the current folder (`prebake.telemetry.project`).
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

from prebake.errors import ConfigError
from prebake.telemetry.project import Project
from prebake.watching.questions import SYNTAX, Question, declared_question, parse_question, read_questions
from prebake.watching.readiness import PATHS, AtAnyPath, AtExit, AtLine, AtUrl, Ready, parse_ready

READY = "what tells that the service is ready: a URL, a path on its port, tcp, or tcp:PORT"
_USUAL = f"(default: the first of {', '.join(PATHS)} that its port knows)"


def add_command(parser: argparse.ArgumentParser) -> None:
    """Add the command after `--`."""
    parser.add_argument("service_command", nargs=argparse.REMAINDER, metavar="-- COMMAND …",
                        help="the service's own command (default: `command` of prebake.toml)")  # fmt: skip


def add_readiness(group: argparse._ActionsContainer, *, ready: bool = True) -> None:
    """Add `--ready` (unless the command has its own), `--ready-line` and `--until-exit`."""
    if ready:
        group.add_argument("--ready", metavar="WHAT", help=f"{READY} {_USUAL}")
    group.add_argument("--ready-line", metavar="TEXT", help="it is ready when a line of its output contains this text")
    group.add_argument("--until-exit", action="store_true", help="it is a job: it is done when it ends with code 0")


def add_questions(group: argparse._ActionsContainer) -> None:
    """Add `--request` and `--requests`."""
    group.add_argument(
        "--request", action="append", default=[], metavar="REQUEST",
        help=f'"{SYNTAX}", such as "POST /caption @cat.jpg", or MODULE:FUNCTION, which is called with the '
        "service's address; repeatable",
    )  # fmt: skip
    group.add_argument("--requests", type=Path, metavar="FILE", help="file of requests, one in each line")


def command_of(options: argparse.Namespace, project: Project, example: str) -> tuple[str, ...]:
    """The service's command. Raises ConfigError if neither the arguments nor the project have one."""
    words = given_command(options)
    if words:
        return words
    if project.command is None:
        raise ConfigError(f"expected a command after --, such as `{example}`, or `command` in prebake.toml")
    return project.command


def given_command(options: argparse.Namespace) -> tuple[str, ...]:
    """The words after `--`; empty if there are none. Raises ConfigError for words without `--`."""
    words = list(options.service_command)
    if words and words[0] != "--":
        raise ConfigError(f'unexpected "{words[0]}": a command comes after --, as in `-- {" ".join(words)}`')
    return tuple(words[1:])


def ready_of(options: argparse.Namespace, project: Project) -> Callable[[], Ready]:
    """Makes what tells that the service is ready. Raises ConfigError for more than one."""
    given = [name for name in ("ready", "ready_line", "until_exit") if getattr(options, name)]
    if len(given) > 1:
        raise ConfigError(f"--{given[0].replace('_', '-')} and --{given[1].replace('_', '-')} exclude each other")
    if options.until_exit:
        return AtExit
    if options.ready_line:
        return lambda: AtLine(options.ready_line)
    text, where = (options.ready, "--ready") if options.ready else (project.ready, f"{project.path}: ready")
    if text is None:
        return AtAnyPath
    parse_ready(text, where)
    return lambda: parse_ready(text, where)


def questions_of(options: argparse.Namespace, project: Project) -> Sequence[Question]:
    """The requests of the options, else those of the project. Raises ConfigError."""
    found = [parse_question(text, "--request") for text in options.request]
    if options.requests:
        found += read_questions(options.requests)
    if not found:
        found = [declared_question(each, f"{project.path}: requests[{number}]", project.folder)
                 for number, each in enumerate(project.requests)]  # fmt: skip
    if found and options.until_exit:
        raise ConfigError("--until-exit: a job that has ended answers no requests: leave them out")
    return found


def refuse_seconds(options: argparse.Namespace, *names: str) -> None:
    """Raise ConfigError if one of these options was given and is no number of seconds above 0."""
    for name in names:
        if (value := getattr(options, name)) is not None and not value > 0:
            raise ConfigError(f"--{name}: expected a number of seconds above 0, found {value:g}")


def refuse_others(ready: Ready) -> None:
    """Raise ConfigError if what would tell readiness answers before the service is started."""
    if isinstance(ready, AtUrl):
        ready.refuse_others()


def assignments(texts: Sequence[str], option: str) -> dict[str, str]:
    """`NAME=VALUE` of a repeatable option. Raises ConfigError."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(f'{option}: expected NAME=VALUE, found "{text}"')
        found[name] = value
    return found
