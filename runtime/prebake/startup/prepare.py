"""`python -B -m prebake.startup.prepare DIR [LIST]`: does once, in an image, what every start would repeat.

Writes the memo of transformers, if it is installed, into `DIR/memo` (`PREBAKE_MEMO`), and links the probe as
`DIR/probe.py`. With a list of numba's functions (`prebake.startup.compiled`), compiles them into `DIR/numba`.
"""

from __future__ import annotations

import argparse
import os
import sys
from importlib.util import find_spec
from pathlib import Path

from prebake.baked import layout
from prebake.errors import PrebakeError
from prebake.startup import compiled, quickstart


def prepare(folder: Path) -> None:
    """Write the memo and link the probe. An earlier link is replaced."""
    link, probe = folder / "probe.py", Path(__file__).parents[1] / "telemetry" / "probe.py"
    link.unlink(missing_ok=True)
    link.symlink_to(probe)
    os.environ[layout.ENV_MEMO] = str(folder / "memo")
    quickstart.begin()
    if find_spec("transformers") is not None:
        import transformers

        print(f"{folder / 'memo'}: transformers {transformers.__version__}")


def compile_functions(folder: Path, listed: Path, *, own: bool | None = None) -> None:
    """Compile the listed functions into the folder; with `own`, those of the project alone, or those of packages.

    Raises ConfigError for a list that is malformed.
    """
    entries = compiled.read_list(compiled.read_file(listed), str(listed))
    entries = [entry for entry in entries if own in (None, entry.own)]
    if find_spec("numba") is None:
        print(f"{listed}: nothing is compiled: numba is not installed")
        return
    problems = compiled.compile_listed(entries, folder)
    for problem in problems:
        print(f"{listed}: {problem}", file=sys.stderr)
    print(f"{folder}: {len(entries) - len(problems)} of {len(entries)} entries of {listed.name} are compiled")


def _main(words: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m prebake.startup.prepare")
    parser.add_argument("folder", type=Path, metavar="DIR")
    parser.add_argument("numba", type=Path, nargs="?", metavar="LIST",
                        help="compile what this list has of installed packages into DIR/numba")  # fmt: skip
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--own", action="store_true", help="what it has of the project in this folder, and no memo")
    which.add_argument("--all", action="store_true", help="what it has of both: the project is installed")
    options = parser.parse_args(words)
    try:
        if options.numba:  # first: numba must not be imported before
            compile_functions(options.folder / "numba", options.numba, own=None if options.all else options.own)
        if not options.own:
            prepare(options.folder)
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(_main(sys.argv[1:]))
