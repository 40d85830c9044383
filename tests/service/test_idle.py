"""Memory is given back when nothing is asked, and not before."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from helpers.runtime_fakes import python_says
from image_analyzer.idle import WhenIdle, give_back


def test_it_happens_once_after_the_last_work() -> None:
    calls: list[str] = []
    called = threading.Event()

    def action() -> None:
        calls.append("called")
        called.set()

    idle = WhenIdle(action, pause=0.05)
    with idle.work():
        with idle.work():
            pass
        assert not called.wait(0.2), "called while work was under way"
    assert called.wait(30)
    assert not threading.Event().wait(0.2)
    assert calls == ["called"]


def test_work_that_begins_meanwhile_puts_it_off() -> None:
    called = threading.Event()
    idle = WhenIdle(called.set, pause=0.3)
    with idle.work():
        pass
    with idle.work():  # well within the pause
        assert not called.wait(0.6)
    assert called.wait(30)


def test_work_that_fails_counts_as_ended() -> None:
    called = threading.Event()
    idle = WhenIdle(called.set, pause=0.01)
    with pytest.raises(RuntimeError, match="no"), idle.work():
        raise RuntimeError("no")
    assert called.wait(30)


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="reads Linux's /proc")
def test_what_was_freed_leaves_the_process() -> None:
    script = """
import ctypes, gc
from image_analyzer.idle import give_back
from prebake.telemetry.timeline import Memory
kept = []
blocks = []
for i in range(2000):  # below the size that is mapped on its own, and a block in between that keeps the heap's end
    blocks.append(bytearray(50_000))
    kept.append(bytearray(2_000))
for block in blocks:
    block[:] = b"x" * len(block)
full = Memory.now().anonymous
del blocks, block
freed = Memory.now().anonymous
give_back()
print(full, freed, Memory.now().anonymous)
"""
    full, freed, given_back = map(int, python_says(script).split())
    assert freed > full - 50_000_000, "the C library gave it back by itself: this test shows nothing"
    assert given_back < full - 50_000_000


def test_without_the_call_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ctypes.CDLL", lambda name: object())
    give_back()
