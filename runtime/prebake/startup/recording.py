"""Records a start with `prebake.startup.pagewise` in a separate process, because pagewise patches the C library.

If that process crashes, fails or hangs, the start is recorded again without pagewise. The list is then longer, but also
correct.
"""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from prebake.errors import ConfigError

logger = logging.getLogger(__name__)

ENV = "PREBAKE_RECORDS"
"""Set by `check --pagewise` for the processes that it starts: record with `PAGEWISE` or `PLAIN`."""
PAGEWISE, PLAIN = "pagewise", "plain"
LONGEST = 900.0
"""Seconds after which the process is considered hung."""
_GOOD = (0, 1)
"""Exit codes of a completed check; 1 means that the start exceeds its budget."""


def told() -> str | None:
    """How this process records; None if `record` did not start it."""
    return os.environ.get(ENV)


def record(arguments: Sequence[str], listed: Path | None) -> int:
    """Run `prebake` with these arguments, with pagewise if possible, and return its exit code.

    `listed` is the file that it writes. Of a failed process's output, only the last line is shown. Raises ConfigError
    if `listed` is None.
    """
    if listed is None:
        raise ConfigError("--pagewise: nothing is recorded; add --record-reads FILE, or leave --pagewise out")
    listed.unlink(missing_ok=True)
    command = [sys.executable, "-m", "prebake", *arguments]
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as said:
        try:
            done = subprocess.run(command, env=os.environ | {ENV: PAGEWISE}, stdout=out, stderr=said,
                                  timeout=LONGEST, check=False)  # fmt: skip
            why = "" if done.returncode in _GOOD and listed.exists() else _what_went_wrong(done.returncode, _text(said))
        except subprocess.TimeoutExpired:
            why = f"did not end within {LONGEST:g} s"
        if not why:
            sys.stdout.write(_text(out))
            sys.stderr.write(_text(said))
            return done.returncode
    logger.warning("%s: recorded without --pagewise, because a start with it %s. The list is longer.", listed, why)
    listed.unlink(missing_ok=True)
    code = subprocess.run(command, env=os.environ | {ENV: PLAIN}, check=False).returncode
    return code if code >= 0 else 128 - code  # as shells report a signal


def _what_went_wrong(code: int, said: str) -> str:
    if code < 0:
        return f"was ended by signal {-code} ({signal.strsignal(-code)})"
    if code == 0:
        return "wrote no list"
    return f"ended with exit code {code} ({(said.splitlines() or ['no message'])[-1].strip()})"


def _text(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read().decode(errors="replace")
