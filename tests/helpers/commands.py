"""Runs a command of the build half by its module, also where its entry point is not installed yet."""

from __future__ import annotations

import argparse
import sys
from types import ModuleType

import pytest

from prebake.errors import PrebakeError


def run_command(
    capsys: pytest.CaptureFixture[str], module: ModuleType, name: str, *arguments: object
) -> tuple[int, str, str]:
    """Exit code, stdout and stderr, as `prebake NAME ARGUMENTS` would give them."""
    capsys.readouterr()
    parser = argparse.ArgumentParser(prog="prebake")
    module.add(parser.add_subparsers())
    try:
        options = parser.parse_args([name, *map(str, arguments)])
        code = int(options.run(options))
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        code = error.exit_code
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    captured = capsys.readouterr()
    return code, captured.out, captured.err
