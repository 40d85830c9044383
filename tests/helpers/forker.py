"""Runs commands of `prebake` in forks of a process that has imported everything, so that they begin at once.

What is killed is then the command's work and not its imports. The process that forks has a single thread. A command's
messages are read to their end, so `Command.wait` returns after the processes that the command had started as well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import IO

TESTS = Path(__file__).parents[1]
_IMPORTED = ("torch", "safetensors.torch", "tqdm", "prebake.__main__", "prebake_build.commands.bake",
             "prebake_build.commands.cache", "prebake_build.commands.fetch", "prebake_build.commands.lock")  # fmt: skip


class Command:
    """A command that runs."""

    def __init__(self, pid: int, answers: IO[str]) -> None:
        self._pid, self._answers = pid, answers
        self.messages = ""

    def kill(self) -> None:
        """If it has ended, nothing happens: its number stays its own until the next command starts."""
        os.kill(self._pid, signal.SIGKILL)

    def wait(self) -> int:
        """The exit code, or minus the signal that ended it. Its messages are there afterwards."""
        code, self.messages = json.loads(self._answers.readline())
        return int(code)


class Forker:
    """Starts commands, one at a time. A context manager."""

    def __init__(self, folder: Path) -> None:
        path = os.pathsep.join([str(TESTS), *filter(None, sys.path)])
        self._process = subprocess.Popen([sys.executable, "-m", "helpers.forker"], cwd=folder, text=True,
                                         env={**os.environ, "PYTHONPATH": path},
                                         stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
        assert self._process.stdout
        self._process.stdout.readline()  # it has imported everything

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate("")

    def start(self, arguments: Sequence[str | Path]) -> Command:
        """Run `prebake ARGUMENTS`."""
        assert self._process.stdin and self._process.stdout
        self._process.stdin.write(json.dumps([str(argument) for argument in arguments]) + "\n")
        self._process.stdin.flush()
        return Command(int(self._process.stdout.readline()), self._process.stdout)


def _serve() -> None:
    for name in _IMPORTED:
        import_module(name)
    print(flush=True)
    pid = 0
    for line in sys.stdin:
        if pid:
            os.waitpid(pid, 0)
        reader, writer = os.pipe()
        pid = os.fork()
        if pid == 0:
            _run(json.loads(line), writer)
        os.close(writer)
        print(pid, flush=True)
        with open(reader, encoding="utf-8") as pipe:  # noqa: PTH123
            messages = pipe.read()
        ended = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
        assert ended
        code = ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status
        print(json.dumps([code, messages]), flush=True)


def _run(arguments: Sequence[str], messages: int) -> None:
    """In the fork: the command, and the end."""
    code = 70
    try:
        nowhere = os.open(os.devnull, os.O_RDWR)
        for number, target in ((0, nowhere), (1, nowhere), (2, messages)):
            os.dup2(target, number)
        os.closerange(3, 256)
        code = import_module("prebake.__main__").main(arguments)
    finally:
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
