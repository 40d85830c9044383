"""The point of a program at which it is dumped, and goes on in each container; hooks around it."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from prebake.errors import PrebakeError

F = TypeVar("F", bound=Callable[[], object])

ENV_DUMP = "PREBAKE_SNAPSHOT_DUMP"
"""Set by `prebake snapshot`: where the snapshot goes, and which command it is of."""
ENV_REFUSED = "PREBAKE_SNAPSHOT_REFUSED"
"""Set by `prebake-restore`: why the process was started the ordinary way."""
FAILED = 125


class RefusedError(PrebakeError):
    """Raised by a function of `after_restore`: the state does not fit this start, which becomes an ordinary one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Restored:
    """How this process was restored: seconds of each step."""

    steps: dict[str, float]
    vdso: str
    """`moved`, or `replaced` by system calls (another kernel)."""

    def to_dict(self) -> dict[str, Any]:
        return {"restored": True, "steps": {name: round(each, 6) for name, each in self.steps.items()}, "vdso": self.vdso}


@dataclass
class _State:
    before: list[Callable[[], object]] = field(default_factory=list)
    after: list[Callable[[], object]] = field(default_factory=list)
    restored: Restored | None = None


_state = _State()


def before_snapshot(function: F) -> F:
    """Have `function` called before the dump, the last registered first: end threads, close files. A decorator."""
    _state.before.append(function)
    return function


def after_restore(function: F) -> F:
    """Have `function` called in the restored process, in the order of registration. A decorator.

    It finds the container's environment and arguments (`os.environ`, `sys.argv`). If it raises an error, the restored
    process ends and the service starts the ordinary way, with the error as the reason (`RefusedError` for this purpose).
    """
    _state.after.append(function)
    return function


def wanted() -> bool:
    """Whether this process was started to be dumped (`prebake snapshot`): a service then loads all it needs first."""
    return ENV_DUMP in os.environ


def report() -> dict[str, Any] | None:
    """How this process was restored, or why it was not: None if there was no snapshot to restore."""
    if _state.restored is not None:
        return _state.restored.to_dict()
    reason = os.environ.get(ENV_REFUSED)
    return {"restored": False, "reason": reason} if reason else None


def here(*, watched: Iterable[Path] = ()) -> bool:
    """Dump the process here, if it was started for that; True in the restored process, else False.

    `watched` are files that the state was made from and that are not mapped: if one has another size or modification time
    at the restore, the snapshot is refused. After a dump the process ends. Raises CannotDumpError if something is open
    that a snapshot cannot hold.
    """
    if not wanted():
        return False
    declared = json.loads(os.environ.pop(ENV_DUMP))
    from prebake.snapshot import environment
    from prebake.snapshot.dump import Dumped, fork_and_dump
    from prebake.snapshot.programs import Library
    from prebake.snapshot.quiet import let_go

    library = Library()
    for function in reversed(_state.before):
        function()
    more = declared["variables"]
    bound = environment.bound(os.environ, more)
    watched = [*watched]
    import prebake.snapshot.renew  # needed after the restore  # noqa: F401

    os.environ.clear()
    let_go()
    result = fork_and_dump(library, Path(declared["output"]), bound=bound, names=more, watched=watched)
    if isinstance(result, Dumped):
        print(result, file=sys.stderr, flush=True)
        os._exit(0)
    _go_on(result, declared["command"])
    return True


def _go_on(address: int, command: list[str]) -> None:
    """In the restored process: renew everything, call the hooks, and report to the supervisor."""
    from prebake.snapshot.handover import Handover

    handover = Handover.read(address)
    try:
        _renew(handover, command)
    except BaseException as error:
        reason = str(error) or type(error).__name__
        os.write(handover.report, reason.encode(errors="replace")[:500])
        os._exit(FAILED)
    os.write(handover.report, b"R")
    os.close(handover.report)


def _renew(handover: Any, command: list[str]) -> None:
    from prebake.snapshot.renew import renew
    from prebake.telemetry import timeline

    prefix = len(command) - len(sys.argv) + 1
    if handover.arguments[:prefix] != command[:prefix]:
        raise RefusedError(f"the command is {' '.join(handover.arguments[:prefix])}, and the snapshot is of {' '.join(command[:prefix])}")
    renew(handover.arguments, handover.environment, prefix)
    timeline.process.birth = handover.began
    _state.restored = Restored(steps=handover.steps, vdso="moved" if handover.vdso_moved else "replaced")
    for function in _state.after:
        function()
    timeline.mark("restored")


