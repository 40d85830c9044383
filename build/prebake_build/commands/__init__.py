"""The build half's subcommands of `prebake`: one module each, each with `add(commands)`.

A command only parses arguments, calls the module that does the work, and prints. Errors leave as
`PrebakeError`; `prebake.__main__` prints them and turns them into the exit code.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def register(commands: Commands) -> None:
    """Add every subcommand; the entry point `prebake.commands` leads here."""
    from prebake_build.commands import bake, cache, lock, measure, verify

    for module in (lock, bake, verify, measure, cache):
        module.add(commands)
