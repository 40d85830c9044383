"""How a restored process ends."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers.snapshots import RUNTIME
from prebake.__main__ import main
from prebake.snapshot import leaving
from prebake.telemetry import restored


def test_threads_and_exit_functions_come_first() -> None:
    source = """if True:
        import atexit, sys, threading, time
        from prebake.snapshot.leaving import leave
        class Kept:
            def __del__(self): print("taken apart")
        kept = Kept()
        atexit.register(print, "at exit")
        threading.Thread(target=lambda: (time.sleep(0.1), print("thread"))).start()
        sys.stdout.write("written, ")
        leave(7)
    """
    done = subprocess.run([sys.executable, "-c", source], env={"PYTHONPATH": str(RUNTIME)}, capture_output=True,
                          text=True, check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (7, "written, thread\nat exit\n", "")


def test_a_command_of_a_restored_process_leaves_so(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []

    class LeftError(Exception):
        pass

    def leave(code: int) -> None:
        codes.append(code)
        raise LeftError

    monkeypatch.setattr(leaving, "leave", leave)
    monkeypatch.setattr("prebake.commands.inspect._run", lambda options: 3)
    assert main(["inspect"]) == 3
    monkeypatch.setattr(restored, "was_restored", lambda: True)
    with pytest.raises(LeftError):
        main(["inspect"])
    assert codes == [3]
