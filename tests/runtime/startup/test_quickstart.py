"""The collector rests while anyone wants it to, and then is as it was before."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from helpers.runtime_fakes import python_says
from prebake.startup.quickstart import Collector


@pytest.fixture(autouse=True)
def _running_collector() -> Iterator[None]:
    assert gc.isenabled()
    yield
    gc.enable()
    gc.unfreeze()


def test_it_rests_until_the_last_pause_is_undone() -> None:
    collector = Collector()
    collector.pause()
    collector.pause()
    collector.resume()
    assert not gc.isenabled()
    collector.resume()
    assert gc.isenabled()


def test_a_collector_that_was_off_stays_off() -> None:
    collector = Collector()
    gc.disable()
    collector.pause()
    collector.resume()
    assert not gc.isenabled()


def test_what_stands_after_the_last_pause_is_frozen() -> None:
    before = gc.get_freeze_count()
    collector = Collector()
    collector.pause()
    collector.resume()
    assert gc.get_freeze_count() > before


def test_only_the_first_start_is_frozen_and_thawing_is_for_good() -> None:
    gc.unfreeze()
    collector = Collector()
    for round_ in range(3):
        collector.pause()
        collector.resume()
        frozen = gc.get_freeze_count()
        assert bool(frozen) is (round_ == 0)
        if not round_:
            alive = weakref.ref(cycle := Cycle())
            del cycle
            collector.thaw()
    gc.collect()
    assert alive() is None


def test_thawing_leaves_what_others_froze() -> None:
    gc.freeze()
    before = gc.get_freeze_count()
    Collector().thaw()
    assert gc.get_freeze_count() >= before > 0


def test_resuming_what_nobody_paused_does_nothing() -> None:
    collector = Collector()
    collector.resume()
    collector.resume(load := object())
    collector.pause()
    assert not gc.isenabled()
    collector.resume(load)
    assert not gc.isenabled()
    collector.resume()
    assert gc.isenabled()


def test_a_child_is_free_of_the_lock_and_of_the_loads_that_its_parent_forked_with() -> None:
    """Another thread holds the collector's lock, with its load's pause taken, at the moment of the fork."""
    said = python_says(
        "import faulthandler, gc, os, threading\n"
        "from prebake.startup.quickstart import collector\n"
        "faulthandler.dump_traceback_later(30, exit=True)\n"
        "held, go_on, load = threading.Event(), threading.Event(), object()\n"
        "def loading():\n"
        "    with collector._lock: collector.pause(load); held.set(); go_on.wait(60)\n"
        "threading.Thread(target=loading).start()\n"
        "held.wait(60)\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    found = [gc.isenabled()]\n"
        "    collector.resume(load); found.append(gc.isenabled())\n"
        "    collector.pause(); found.append(gc.isenabled())\n"
        "    collector.resume(); found.append(gc.isenabled())\n"
        "    print(found, flush=True)\n"
        "    os._exit(0)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "go_on.set()\n"
        "print(code, gc.isenabled())\n"
        "collector.resume(load)\n"
        "print(gc.isenabled())"
    )
    assert said.splitlines() == ["[True, True, False, True]", "0 False", "True"]


def test_a_child_keeps_the_pauses_of_its_process_and_a_collector_that_was_off() -> None:
    said = python_says(
        "import gc, os\n"
        "from prebake.startup.quickstart import collector\n"
        "def child(code):\n"
        "    if not (pid := os.fork()): print(code(), flush=True); os._exit(0)\n"
        "    os.waitpid(pid, 0)\n"
        "collector.pause()\n"
        "collector.pause(object())\n"
        "child(lambda: (gc.isenabled(), collector.resume(), gc.isenabled()))\n"
        "collector._pauses.clear(); collector._was_enabled = False\n"
        "gc.disable()\n"
        "collector.pause(object())\n"
        "child(gc.isenabled)"
    )
    assert said.splitlines() == ["(False, None, True)", "False"]


class Cycle:
    """An object that only the collector can free."""

    def __init__(self) -> None:
        self.itself = self


def test_many_threads_leave_it_as_they_found_it() -> None:
    collector = Collector()

    def work() -> None:
        for _ in range(200):
            collector.pause()
            assert not gc.isenabled()
            collector.resume()

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gc.isenabled()
