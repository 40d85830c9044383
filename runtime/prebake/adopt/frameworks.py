"""What happens at the first import of a framework: the quick start, and the imports on the timeline.

From the first framework's import until the first load of a model ends, Python's garbage collector runs after `CALM` new
objects instead of 700. That saves most of what switching it off would (imports of torch and transformers: 3.5 s of
processor time, 2.8 s, 2.6 s without it), needs no end in a process that never loads a model, and leaves the
application's own `gc.disable()` and `gc.enable()` alone.
"""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from prebake import snapshot
from prebake.adopt import ENV_REPORT, claims
from prebake.families import compat
from prebake.startup import quickstart, readahead
from prebake.telemetry import timeline

if TYPE_CHECKING:
    from prebake.adopt.report import Reporter

CALM = 500_000
"""Objects; torch and transformers make 400,000 that stay, and 240,000 in cycles that do not."""


class _State:
    lock = threading.Lock()
    begun = False
    thresholds: tuple[int, int, int] | None = None
    """Of the collector, before it was calmed."""


def importing(name: str) -> AbstractContextManager[object]:
    """The span of a framework's import, for `imports.around_import`. The first call prepares the process."""
    begin()
    return _importing(name)


@contextmanager
def _importing(name: str) -> Iterator[None]:
    with timeline.span(f"import {name}"):
        if name == "torchvision":
            compat.torchvision_operators(being_imported=True)
        yield


def begin() -> None:
    """Prepare the process for its frameworks. Safe to call again."""
    with _State.lock:
        if _State.begun:
            return
        _State.begun = True
    if not claims.claim("readahead"):
        os.environ.pop(readahead.ENV, None)  # another process of this service reads ahead
    quickstart.begin()
    if snapshot.wanted():
        snapshot.after_restore(_report_restored)
    else:
        _report()
    _State.thresholds = gc.get_threshold()
    if _State.thresholds[0]:  # 0: the application has switched it off
        gc.set_threshold(CALM, *_State.thresholds[1:])


def _report() -> None:
    if os.environ.get(ENV_REPORT):
        from prebake.adopt import report

        _reporters.append(report.begin(claims.claim("report")))


def _report_restored() -> None:
    """The models were loaded before the dump: the report has them at once."""
    _report()
    loaded()


def settle() -> None:
    """Let the garbage collector run as before: the frameworks are imported. Safe to call again.

    Thresholds that the application has set meanwhile stay.
    """
    before, _State.thresholds = _State.thresholds, None
    if before is not None and gc.get_threshold()[0] == CALM:
        gc.set_threshold(*before)


def loaded() -> None:
    """A load has ended."""
    settle()
    for reporter in _reporters:
        if reporter is not None:
            reporter.loaded()


_reporters: list[Reporter | None] = []


def _after_fork_in_child() -> None:
    """A child has no threads of its parent: it reports for itself, under its own process id."""
    _State.lock = threading.Lock()
    _reporters.clear()
    if _State.begun and os.environ.get(ENV_REPORT):
        from prebake.adopt import report

        _reporters.append(report.begin(False))


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
