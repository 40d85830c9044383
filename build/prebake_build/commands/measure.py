"""`prebake measure`: starts of the baked service beside those of the naive one."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.errors import ConfigError
from prebake_build import report
from prebake_build.measure import Comparison, Launcher, compare, findings, table

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake measure --image prebake:latest --baseline prebake-baseline:latest
  prebake measure --root models --checkpoints checkpoints     as plain processes, without Docker
                  (checkpoints: python -m prebake_build.naive prepare --output checkpoints)

Exit codes: 0 within the limits; 1 a limit missed, or a service that did not start; 2 wrong use.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "measure", help="start the baked and the naive service in turn, and compare", epilog=_EPILOG,
        description="Start both services in turn, time each from outside, and compare time to ready, time to the "
        "first answer, and memory.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    containers = parser.add_argument_group("containers")
    containers.add_argument("--image", metavar="IMAGE", help="image of the baked service")
    containers.add_argument("--baseline", metavar="IMAGE", help="image of the naive service")
    processes = parser.add_argument_group("plain processes")
    processes.add_argument("--root", type=Path, metavar="DIR", help="root of baked models")
    processes.add_argument("--checkpoints", type=Path, metavar="DIR", help="what prebake_build.naive prepared")
    parser.add_argument("--rounds", type=int, default=5, help="starts of each that count (default: %(default)s)")
    parser.add_argument(
        "--timeout", type=float, default=120, metavar="S", help="for one start (default: %(default)g s)"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", help="write startup.html and startup.json there")
    limits = parser.add_argument_group("limits (medians decide)")
    limits.add_argument(
        "--shorter", type=float, default=30, metavar="PERCENT", help="ready at least this much sooner (30)"
    )
    limits.add_argument(
        "--memory-above", type=float, default=20, metavar="PERCENT", help="peak memory at most this much above (20)"
    )
    limits.add_argument("--first-answer", type=float, default=5, metavar="S", help="first answer within (5 s)")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    if options.rounds < 1:
        raise ConfigError(f"--rounds: expected at least 1, found {options.rounds}")
    naive, baked = _launchers(options)
    comparison = compare(naive, baked, rounds=options.rounds, timeout=options.timeout)
    print(table(comparison))
    print(f"\n{report.headline(comparison)}")
    if options.output:
        _write(comparison, options.output)
    missed = findings(comparison, shorter=options.shorter, memory_above=options.memory_above,
                      first_answer=options.first_answer)  # fmt: skip
    for finding in missed:
        print(f"prebake: missed: {finding}", file=sys.stderr)
    return 1 if missed else 0


def _launchers(options: argparse.Namespace) -> tuple[Launcher, Launcher]:
    if options.image and options.baseline and not (options.root or options.checkpoints):
        from prebake_build.image import ContainerLauncher, open_engine

        client = open_engine()
        return ContainerLauncher(client, options.baseline, "naive"), ContainerLauncher(client, options.image, "baked")
    if options.root and options.checkpoints and not (options.image or options.baseline):
        from prebake_build import processes

        for folder in (options.root, options.checkpoints):
            if not folder.is_dir():
                raise ConfigError(f"{folder}: there is no such folder")
        return processes.naive(options.checkpoints), processes.baked(options.root)
    raise ConfigError("name either --image and --baseline, or --root and --checkpoints")


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
