"""`prebake completion`: a script that completes the command line in bash, zsh or fish.

shtab writes it from argparse's parsers, so it has every command that is installed, those of other distributions too.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake.errors import ConfigError

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  eval "$(prebake completion bash)"                                                     in ~/.bashrc
  prebake completion zsh > ~/.zfunc/_prebake                                            with fpath+=~/.zfunc in ~/.zshrc
  prebake completion fish > ~/.config/fish/completions/prebake.fish

The script names the commands that are installed now: write it anew after an update. eval starts Prebake in each new
shell; a file is read faster.

exit codes: 0 printed; 2 wrong use, or shtab is not installed
"""
_FOLDERS = ("DIR",)
_FILES = ("FILE",)


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "completion", help="print the shell's completion of this command line", epilog=_EPILOG,
        description="Print a script with which the shell completes commands, options, files and folders. "
        "Needs the extra prebake-build[completion].",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="bash, zsh or fish")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    print(script(options.shell))
    return 0


def script(shell: str) -> str:
    """The script for `bash`, `zsh` or `fish`, for all installed commands.

    Raises ConfigError if shtab is missing, or so old that it does not know the shell.
    """
    from prebake.commands.parsing import parser

    try:
        import shtab
    except ImportError as error:
        raise ConfigError(
            f"shell completion needs shtab ({error.name} is missing): pip install 'prebake-build[completion]'"
        ) from error
    if shell not in shtab.SUPPORTED_SHELLS:
        raise ConfigError(
            f"this version of shtab ({shtab.__version__}) does not know {shell}: "
            "pip install --upgrade 'prebake-build[completion]'"
        )
    top = parser(None)
    _mark_places(top, file=shtab.FILE, folder=shtab.DIRECTORY)
    text: str = shtab.complete(top, shell)
    return text


def _mark_places(parser: argparse.ArgumentParser, *, file: object, folder: object) -> None:
    """Tell shtab which arguments are files and folders, here and in the subcommands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for child in action.choices.values():
                _mark_places(child, file=file, folder=folder)
        elif action.metavar in _FOLDERS:
            action.complete = folder  # type: ignore[attr-defined]  # shtab looks for this attribute
        elif action.metavar in _FILES or action.type is Path or action.nargs == argparse.REMAINDER:
            action.complete = file  # type: ignore[attr-defined]
