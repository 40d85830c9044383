"""`prebake snapshot --rehearse`: restores a snapshot once, and lists what it used for later restores to read ahead."""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from prebake.commands.service_arguments import (
    add_questions,
    add_readiness,
    questions_of,
    ready_of,
    refuse_others,
    refuse_seconds,
)
from prebake.errors import ConfigError, SnapshotError
from prebake.snapshot import programs
from prebake.snapshot.ahead import add_list
from prebake.snapshot.environment import at_start
from prebake.snapshot.folder import IMAGE
from prebake.snapshot.use import ENV_REHEARSAL, Used, forget, used
from prebake.telemetry.project import read_project
from prebake.telemetry.services import find_service
from prebake.watching import proc
from prebake.watching.presets import Preset
from prebake.watching.process import WatchedProcess, ended_by_signals
from prebake.watching.questions import Question, send
from prebake.watching.readiness import Told, unready, wait

_REFUSED = re.compile(r"^prebake: the snapshot is not used: (.*)$", re.MULTILINE)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add `--rehearse` and what belongs to it."""
    parser.add_argument(
        "--rehearse", type=Path, metavar="DIR",
        help="restore the snapshot in DIR once with this command, ask the service once, and list in its table what "
        "that used: later restores read it ahead, and wait less for a cold disk",
    )  # fmt: skip
    group = parser.add_argument_group("with --rehearse")
    add_readiness(group)
    add_questions(group)
    group.add_argument("--service", metavar="NAME", help="installed service whose request is sent, or MODULE:OBJECT")
    group.add_argument("--timeout", type=float, default=120.0, metavar="SECONDS",
                       help="how long to wait until the service is ready (default: %(default)g)")  # fmt: skip


def rehearse(options: argparse.Namespace, command: Sequence[str]) -> int:
    """Rehearse the snapshot in the folder `options.rehearse`. Raises SnapshotError if it is refused here, or does not
    become ready; then it stays as it was."""
    refuse_seconds(options, "timeout")
    project = read_project(Path())
    ready, questions = ready_of(options, project)(), questions_of(options, project)
    refuse_others(ready)
    folder: Path = options.rehearse.absolute()
    if not (folder / IMAGE).is_file():
        raise ConfigError(f"{folder}: holds no snapshot (run: prebake snapshot --output {folder} -- COMMAND)")
    forget(folder / IMAGE)
    environment = {**at_start(), ENV_REHEARSAL: "1"}
    restorer = [str(programs.folder() / programs.RESTORER), str(folder)]
    with ended_by_signals(), WatchedProcess([*restorer, *command], environment) as service:
        waited = wait(service, ready, options.timeout)
        if refused := _REFUSED.search(service.log()):
            raise SnapshotError(f"{folder}: the snapshot is refused here: {refused[1]}")
        if waited.told is None:
            why = unready(service, waited, options.timeout)
            raise SnapshotError(f"the restored service {why}:\n{service.log()}")
        at_ready = _used(service, folder)
        for question in questions or _preset(options, waited.told):
            send(question, waited.told.url)
        answered = _used(service, folder)
    print(add_list(folder, at_ready, answered), file=sys.stderr)
    return 0


def _used(service: WatchedProcess, folder: Path) -> Used:
    pids = [pid for pid in proc.session(service.pid) if pid != service.pid]  # the leader is the restorer
    return used(folder / IMAGE, pids)


def _preset(options: argparse.Namespace, told: Told) -> Sequence[Question]:
    installed = find_service(options.service)
    return [] if installed is None else Preset(installed, options.service)(told)
