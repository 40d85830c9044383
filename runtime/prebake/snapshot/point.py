"""The point of a program at which it is dumped, and goes on in each container; hooks around it."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeVar

from prebake.errors import SnapshotError

F = TypeVar("F", bound=Callable[[], object])

ENV_DUMP = "PREBAKE_SNAPSHOT_DUMP"
"""Set by `prebake snapshot`: where the snapshot goes, and which command it is of."""


@dataclass
class _State:
    before: list[Callable[[], object]] = field(default_factory=list)
    after: list[Callable[[], object]] = field(default_factory=list)
    watched: list[Callable[[], Iterable[Path]]] = field(default_factory=list)


_state = _State()
asked: dict[str, str] = {}
"""Name of a variable that the application has asked for, and where. A container that sets one of them, which the dump
did not have, starts the ordinary way."""


def before_snapshot(function: F) -> F:
    """Have `function` called before the dump, the last registered first: end threads, close files. A decorator."""
    _state.before.append(function)
    return function


def after_restore(function: F) -> F:
    """Have `function` called in the restored process, in the order of registration. A decorator.

    It finds the container's environment and arguments (`os.environ`, `sys.argv`). If it raises an error, the restored
    process ends and the service starts the ordinary way, with the error as the reason (`SnapshotError` is for this).
    """
    _state.after.append(function)
    return function


def watch(find: Callable[[], Iterable[Path]]) -> None:
    """Have the files that `find` finds at the dump watched, as those that are given to `here`."""
    _state.watched.append(find)


def wanted() -> bool:
    """Whether this process was started to be dumped (`prebake snapshot`): a service then loads all it needs first."""
    return ENV_DUMP in os.environ


def here(*, watched: Iterable[Path] = ()) -> bool:
    """Dump the process here, if it was started for that; True in the restored process, else False.

    `watched` are files that the state was made from and that are not mapped: if one has another size or modification
    time at the restore, the snapshot is refused. So it is for the program's own modules, and where an imported
    distribution has another version. After a dump the process ends. Raises SnapshotError if something is
    open that a snapshot cannot hold.
    """
    if not wanted():
        return False
    declared: dict[str, Any] = json.loads(os.environ[ENV_DUMP])
    if os.getppid() != declared["parent"]:
        raise SnapshotError(f"process {os.getpid()} is a child of the command that `prebake snapshot` started: a "
                            "snapshot holds that process alone (a script starts it with `exec`)")  # fmt: skip
    from prebake.snapshot import imported  # an ordinary start does not need them
    from prebake.snapshot.sequence import dump_and_go_on

    del os.environ[ENV_DUMP]
    files = {*watched, *imported.files(), *(path for find in _state.watched for path in find())}
    dump_and_go_on(declared, sorted(files), _state.before, _state.after, asked)
    return True


def refuse(reason: str) -> NoReturn:
    """Print why this process can't be dumped, and end it; if another process waits for the dump, end that too."""
    print(f"prebake: error: no snapshot: {reason}", file=sys.stderr, flush=True)
    parent = json.loads(os.environ.get(ENV_DUMP, "{}")).get("parent")
    if parent is not None and os.getppid() != parent:
        os.kill(parent, signal.SIGTERM)
    os._exit(1)
