"""The command `prebake`: serve, check and inspect; the build half adds its own through `prebake.commands`."""

from __future__ import annotations

import sys

from prebake import readahead

if sys.argv[1:2] in (["serve"], ["check"]):
    readahead.begin()  # before the imports below, which take longer than the reader takes to start

import argparse
import logging
import os
from collections.abc import Sequence

from prebake import commands as own
from prebake.documents import reason
from prebake.errors import PrebakeError

OWN: tuple[str, ...] = ("serve", "check", "inspect")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the process's exit code. 0 fine, 1 a finding, 2 wrong use or configuration."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parser(with_build_half=not arguments or arguments[0] not in OWN).parse_args(arguments)
    try:
        logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
        return int(options.run(options))
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has had enough (| head). Python would complain once more while it exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"prebake: error: {error.filename or options.command}: {reason(error)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def parser(*, with_build_half: bool) -> argparse.ArgumentParser:
    """The command line. Entry points are looked up only where needed: the look-up costs a start its time."""
    top = argparse.ArgumentParser(
        prog="prebake",
        description="Container images with model weights baked in, converted beforehand, mapped at start.",
    )
    commands = top.add_subparsers(metavar="COMMAND", dest="command", required=True)
    own.add(commands)
    if with_build_half:
        from importlib.metadata import entry_points

        for entry in entry_points(group="prebake.commands"):
            entry.load()(commands)
    return top


if __name__ == "__main__":
    sys.exit(main())
