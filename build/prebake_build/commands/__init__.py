"""The build half's subcommands of `prebake`, one module each with `add(commands)`.

A command parses its arguments, calls the module that does the work, and prints. Errors leave as `PrebakeError`;
`prebake.__main__` prints them and turns them into the exit code.
"""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]
