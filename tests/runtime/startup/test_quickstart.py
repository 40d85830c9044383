"""The collector rests while anyone wants it to, and then is as it was before."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator

import pytest

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
