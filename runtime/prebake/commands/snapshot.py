"""`prebake snapshot`: start a command that dumps itself; or build the two programs that this needs."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from prebake.commands.arguments import subcommand
from prebake.errors import ConfigError

if TYPE_CHECKING:
    from prebake.commands.arguments import Commands


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = subcommand(
        commands, "snapshot", "start a command that writes a snapshot of itself, for later starts to restore",
        "prebake snapshot --output /snapshot -- /opt/prebake/bin/prebake serve --host 0.0.0.0",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, metavar="DIR", help="folder for the snapshot")
    parser.add_argument(
        "--variable", action="append", default=[], metavar="NAME",
        help="a variable that the loaded state depends on: passed to the command, and required with the same value at "
        "each restore; repeatable. Variables of frameworks and of Prebake need not be named; all others are withheld.",
    )  # fmt: skip
    parser.add_argument("--build-programs", type=Path, metavar="DIR",
                        help="only compile the restorer and the library that snapshots need (gcc)")  # fmt: skip
    parser.add_argument("command_line", nargs="*", metavar="COMMAND", help="its path and arguments, after `--`")
    parser.set_defaults(run=_snapshot)


def _snapshot(options: argparse.Namespace) -> int:
    from prebake.snapshot import programs

    if options.build_programs:
        programs.build(options.build_programs)
        return 0
    if not options.output or not options.command_line:
        raise ConfigError("snapshot: expected --output DIR and a COMMAND after `--`, or --build-programs DIR")
    if why := programs.unsupported():
        raise ConfigError(f"snapshot: {why}")
    program, *arguments = options.command_line
    if not Path(program).is_absolute():
        found = shutil.which(program)
        raise ConfigError(f"snapshot: {program}: expected an absolute path, as for the container's entry point"
                          + (f": {found}" if found else ""))  # fmt: skip
    return _execute([program, *arguments], options.output.absolute(), options.variable)


def _execute(command: list[str], output: Path, variables: list[str]) -> NoReturn:
    """Become the command, with an environment without secrets and no inherited descriptors."""
    from prebake.snapshot.environment import at_start, of_dump, with_own
    from prebake.snapshot.point import ENV_DUMP

    environment = of_dump(at_start(), variables)
    declared = {"output": str(output), "command": command, "variables": variables, "environment": environment}
    output.mkdir(parents=True, exist_ok=True)
    for name in ("table", "memory.img", "snapshot.json"):
        (output / name).unlink(missing_ok=True)  # a command that ends without a dump leaves no older one
    sys.stdout.flush()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))
    try:
        os.execve(command[0], command, with_own(environment) | {ENV_DUMP: json.dumps(declared)})  # noqa: S606
    except OSError as error:
        raise ConfigError(f"snapshot: {command[0]}: {error.strerror}") from error
