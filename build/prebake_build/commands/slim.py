"""`prebake slim`: removes from an environment what inference never reads."""

from __future__ import annotations

from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake_build.slimming.command import DESCRIPTION, EPILOG, add_options, run

if TYPE_CHECKING:
    from prebake_build.commands import Commands


def add(commands: Commands) -> None:
    """Add the command."""
    parser = commands.add_parser(
        "slim", help="remove from an environment what inference never reads", description=DESCRIPTION, epilog=EPILOG,
        formatter_class=HelpFormatter,
    )  # fmt: skip
    add_options(parser)
    parser.set_defaults(run=run)
