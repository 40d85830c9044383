"""Tells `prebake check -- COMMAND` what this process did: its timeline, its loads and, if wanted, what it read.

`PREBAKE_CHECK` names a folder. Every Python process of the service makes the file `PID.begun` there at its start, and
writes `PID.json` when the file `end` appears, or when it ends by itself. The file `ready` marks readiness, as it is
seen from outside. Where the file `record` exists, the files that the process reads are recorded from its start on.
"""

from __future__ import annotations

import atexit
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.adopt import ENV_CHECK

if TYPE_CHECKING:
    from prebake.startup.recorder import Recorder

BEGUN, READY, END, RECORD = ".begun", "ready", "end", "record"
POLL = 0.02
"""Seconds between two looks for `ready` and `end`."""


class _Checked:
    """This process's part."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = threading.Lock()
        self._recorder: Recorder | None = None
        if (folder / RECORD).exists():
            from prebake.startup.recorder import Recorder

            self._recorder = Recorder()
            self._recorder.begin()
        self._start()
        os.register_at_fork(after_in_child=self._after_fork)
        atexit.register(self.write)

    def _start(self) -> None:
        (self._folder / f"{os.getpid()}{BEGUN}").touch()
        threading.Thread(target=self._wait, name="prebake-check", daemon=True).start()

    def _after_fork(self) -> None:
        self._written = threading.Lock()
        self._start()

    def _wait(self) -> None:
        ready = False
        while not (self._folder / END).exists():
            if not ready and (self._folder / READY).exists():
                ready = True
                if self._recorder is not None:
                    self._recorder.ready()
            time.sleep(POLL)
        self.write()

    def write(self) -> None:
        """Write `PID.json`, once."""
        if not self._folder.is_dir() or not self._written.acquire(blocking=False):
            return
        path = self._folder / f"{os.getpid()}.json"
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(self._document(), default=str), encoding="utf-8")
        partial.replace(path)

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = {"pid": os.getpid(), "program": sys.argv[:1] and sys.argv[0], "timeline": None}
        if "prebake.adopt.frameworks" in sys.modules:  # the process has imported a framework
            from prebake.adopt.loads import loads
            from prebake.startup import deferred
            from prebake.telemetry import timeline

            document |= {
                "timeline": timeline.process.to_dict(),
                "birth": timeline.process.birth,
                "loads": [load.to_dict() for load in loads.copy()],
                "deferred": deferred.report(),
            }
        document["reads"] = None if self._recorder is None else self._reads(self._recorder)
        return document

    def _reads(self, recorder: Recorder) -> str:
        lines = recorder.text(without=_weights()).splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith(f"{self._folder}/"))


def _weights() -> list[Path]:
    """The weights of the baked models: they are read as they are needed."""
    from prebake.adopt.catalogue import catalogue

    return [file for baked in catalogue().models for file in baked.weights]


def begin() -> None:
    """Begin, in a process of a service that is checked."""
    folder = Path(os.environ[ENV_CHECK])
    if folder.is_dir():
        _Checked(folder)
