"""The order of things at a dump, and in the restored process.

At the dump: the service's own functions, the environment cleared, everything let go that is not memory, then the dump.
In the restored process: the container's arguments and environment, everything renewed, the service's functions, and a
word to the supervisor that the process is alive. If the process ends before that word, the supervisor starts the
service the ordinary way.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prebake.errors import SnapshotError
from prebake.snapshot import environment, renew
from prebake.snapshot.dump import Dumped, fork_and_dump
from prebake.snapshot.handover import Handover
from prebake.snapshot.programs import Library
from prebake.snapshot.quiet import let_go
from prebake.telemetry import timeline
from prebake.telemetry.restored import set_restored

Functions = Sequence[Callable[[], object]]

FAILED = 125
LONGEST_REASON = 400


def dump_and_go_on(
    declared: dict[str, Any], watched: Sequence[Path], before: Functions, after: Functions, asked: Mapping[str, str]
) -> None:
    """Dump this process and end it; returns in the restored process only. Raises SnapshotError.

    `declared` is what `prebake snapshot` passed: `output`, `command`, `environment` (that of the process's start),
    `withheld` (names of the variables that are not in it), and `variables`, further bound names. `asked` are variables
    that the application has asked for, and where.
    """
    library = Library()
    for function in reversed(before):
        function()
    names = [*declared["variables"], *environment.only_when_unset(asked, declared["withheld"])]
    more, at_start = declared["variables"], declared["environment"]
    given = environment.with_own(at_start)
    own = {name: value for name, value in os.environ.items() if given.get(name) != value}
    os.environ.clear()
    renew.prepare()
    let_go()
    bound = environment.bound(at_start, more)
    result = fork_and_dump(library, Path(declared["output"]), bound=bound, names=names, watched=watched)
    if isinstance(result, Dumped):
        print(result, file=sys.stderr, flush=True)
        os._exit(0)
    replaced = {name: (at_start.get(name), value) for name, value in own.items()}
    _go_on(Handover.read(result), declared["command"], replaced, after)


def _go_on(handover: Handover, command: list[str], own: dict[str, tuple[str | None, str]], after: Functions) -> None:
    try:
        _renew(handover, command)
        for name, (before, value) in own.items():  # set by the program itself, as cv2 sets LD_LIBRARY_PATH
            if os.environ.get(name) in (None, before):
                os.environ[name] = value
        with timeline.span("restore: functions of the service"):
            for function in after:
                function()
    except BaseException as error:
        reason = str(error) or type(error).__name__
        os.write(handover.report, reason.encode(errors="replace")[:LONGEST_REASON])
        os._exit(FAILED)
    os.write(handover.report, b"R")
    os.close(handover.report)


def _renew(handover: Handover, command: list[str]) -> None:
    prefix = len(command) - len(sys.argv) + 1
    if handover.arguments[:prefix] != command[:prefix]:
        given, dumped = " ".join(handover.arguments[:prefix]), " ".join(command[:prefix])
        raise SnapshotError(f"the command is {given!r}, and the snapshot is of {dumped!r}")
    renew.renew(handover.arguments, handover.environment, prefix)
    handover.restored.step("renew")
    handover.restored.put_into(timeline.process)
    set_restored(handover.restored)
