"""Slims an environment; the image build calls it with the rooms that it needs alone."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from prebake.errors import PrebakeError
from prebake_build.slimming.command import DESCRIPTION, EPILOG, add_options, run


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m prebake_build.slimming", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    add_options(parser)
    try:
        return run(parser.parse_args(argv))
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main())
