"""`prebake snapshot`: start a command that dumps itself; or build the two programs that this needs."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import subcommand
from prebake.commands.rehearse import add_options
from prebake.errors import ConfigError

if TYPE_CHECKING:
    from prebake.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = subcommand(
        commands, "snapshot", "start a command that writes a snapshot of itself, for later starts to restore",
        "prebake snapshot --output /snapshot -- uvicorn app:app --host 0.0.0.0",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the snapshot")
    parser.add_argument(
        "--variable", action="append", default=[], metavar="NAME",
        help="a variable that the loaded state depends on: passed to the command, and required with the same value at "
        "each restore; repeatable. Variables of frameworks and of Prebake need not be named; all others are withheld.",
    )  # fmt: skip
    parser.add_argument("--seconds", type=_seconds, default=900.0, metavar="N",
                        help="give up if there is no snapshot by then (default: %(default)g)")  # fmt: skip
    parser.add_argument("--build-programs", type=Path, metavar="DIR",
                        help="only compile the restorer and the library that snapshots need (gcc)")  # fmt: skip
    add_options(parser)
    parser.add_argument(
        "command_line",
        nargs="*",
        metavar="COMMAND",
        help="after `--`: started by `prebake run`, or as it is if it begins with an absolute path",
    )
    parser.set_defaults(run=_snapshot)


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise ValueError(text)
    return value


_seconds.__name__ = "number of seconds"  # argparse names it in "invalid … value"


def _snapshot(options: argparse.Namespace) -> int:
    from prebake.snapshot import programs

    if options.build_programs:
        programs.build(options.build_programs)
        return 0
    if bool(options.output) == bool(options.rehearse) or not options.command_line:
        raise ConfigError(
            "snapshot: expected --output DIR or --rehearse DIR, and a COMMAND after `--`; or --build-programs DIR"
        )
    if why := programs.unsupported():
        raise ConfigError(f"snapshot: {why}")
    from prebake.snapshot import launch

    command = _command(options.command_line)
    if options.rehearse:
        from prebake.commands.rehearse import rehearse

        return rehearse(options, command)
    code = launch.start(command, options.output.absolute(), options.variable, options.seconds, _unstartable)
    if code == 0:
        restorer = [str(programs.folder() / programs.RESTORER), str(options.output.absolute())]
        print(f"snapshot: entry point: {json.dumps([*restorer, *command])}", file=sys.stderr)
    return code


def _command(words: list[str]) -> list[str]:
    """The command as given; one without a path is started by `prebake run`, as in the images of `prebake init`."""
    if Path(words[0]).is_absolute():
        return words
    if not shutil.which(words[0]):
        is_file = "/" in words[0] and Path(words[0]).exists()
        raise _unstartable(words[0], PermissionError() if is_file else FileNotFoundError())
    prebake = Path(sys.prefix) / "bin" / "prebake"
    if not prebake.exists():
        raise ConfigError(
            f"snapshot: {words[0]} would be started by {prebake}, which does not exist; or give an absolute path"
        )
    if words[0] == "prebake":
        return [str(prebake), *words[1:]]
    return [str(prebake), "run", "--", *words]


def _unstartable(name: str, error: OSError | ValueError) -> ConfigError:
    from prebake.adopt.unstartable import EMPTY, why_unstartable

    return ConfigError(f"snapshot: {name or EMPTY}: {why_unstartable(name, error)}")
