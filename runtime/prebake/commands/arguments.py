"""Arguments that several subcommands share. Commands of other distributions may use them too."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked import layout

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """Wraps long lines of descriptions and epilogs, except indented ones: examples and tables."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        import textwrap

        lines = (
            [line] if line.startswith(" ") else textwrap.wrap(line, width, break_on_hyphens=False) or [""]
            for line in text.splitlines()
        )
        return "\n".join(indent + line for wrapped in lines for line in wrapped)


def subcommand(commands: Commands, name: str, summary: str, example: str) -> argparse.ArgumentParser:
    """A subcommand whose help shows an example."""
    return commands.add_parser(
        name, help=summary, description=summary[0].upper() + summary[1:] + ".",
        epilog=f"example:\n  {example}", formatter_class=HelpFormatter,
    )  # fmt: skip


def add_root(parser: argparse.ArgumentParser) -> None:
    """Add `--root`."""
    parser.add_argument("--root", type=Path, default=layout.default_root(),
                        help=f"folder of baked models (default: {layout.ENV_ROOT}, now %(default)s)")  # fmt: skip


def add_allow(parser: argparse.ArgumentParser) -> None:
    """Add `--allow`."""
    parser.add_argument(
        "--allow", action="append", default=[], metavar="MODULE",
        help="Python module (with its submodules) whose code models of family torch may use; repeatable "
        f"(also: {layout.ENV_ALLOW}, comma separated)",
    )  # fmt: skip
