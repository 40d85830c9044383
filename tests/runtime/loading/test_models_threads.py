"""Threads, event loops and forked children get each model from one load, and none of them waits for ever."""

from __future__ import annotations

import asyncio
import logging
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from helpers.pretended_loads import Loads, loaded_of, models_of
from helpers.runtime_fakes import bake_module, python_says
from prebake.baked.manifest import Loading
from prebake.baked.model import BakedModel
from prebake.errors import LoadError, LoadTimeoutError, UnknownModelError
from prebake.loading import models as models_module
from prebake.tiers.loader import LoadedModel


def test_200_threads_make_one_load_and_get_one_model_in_every_round(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    rounds, threads = 50, 200
    line = threading.Barrier(threads + 1, timeout=60)
    found: list[set[int]] = [set() for _ in range(rounds)]

    def use() -> None:
        for round_ in range(rounds):
            line.wait()
            found[round_].add(id(models["a"]))
            line.wait()

    workers = [threading.Thread(target=use, daemon=True) for _ in range(threads)]
    for worker in workers:
        worker.start()
    kept = []
    for _ in range(rounds):
        line.wait()
        line.wait()
        kept.append(models["a"])  # so that no two rounds' models have one address
        models.unload("a")
    for worker in workers:
        worker.join(60)
    assert loads.count == {"a": rounds}
    assert found == [{id(model)} for model in kept]


def test_many_threads_that_unload_load_and_fail_leave_no_deadlock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.CRITICAL, "prebake.loading.models")  # hundreds of failures, each a line otherwise
    monkeypatch.setattr(models_module, "RETRY_PAUSE", 0.0)
    calls = iter(range(10**9))

    def load(baked: BakedModel, *_: object) -> LoadedModel:
        if next(calls) % 3 == 0:
            raise RuntimeError("every third time")
        return loaded_of(baked)

    models = models_of(tmp_path, load)

    def use(number: int) -> None:
        for turn in range(20):
            name = "abc"[(number + turn) % 3]
            with suppress(RuntimeError):
                assert models[name].name == name
            models.unload(name)
            models.status()

    workers = [threading.Thread(target=use, args=(number,), daemon=True) for number in range(30)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert not any(worker.is_alive() for worker in workers)


def test_get_does_not_block_the_event_loop(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    loads.hold = {name: threading.Event() for name in "ab"}

    async def answer() -> list[str]:
        waiting = [asyncio.create_task(models.get(name)) for name in "aab"]
        for name in "ab":  # the loop turns while the loads, under way, wait for us
            assert await asyncio.to_thread(loads.begun[name].wait, 60)
        assert not any(task.done() for task in waiting)
        for event in loads.hold.values():
            event.set()
        return [loaded.name for loaded in await asyncio.gather(*waiting)]

    assert asyncio.run(answer()) == ["a", "a", "b"]
    assert loads.count == {"a": 1, "b": 1}


def test_get_ends_with_the_same_errors(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads, a=Loading(timeout=0.01), b=Loading())
    loads.hold["a"] = threading.Event()
    loads.errors["b"] = [LoadError("b: no tier")]
    with pytest.raises(LoadTimeoutError, match=r"^a: not loaded within 0\.01 s "):
        asyncio.run(models.get("a"))
    with pytest.raises(LoadError, match=r"^b: no tier$"):
        asyncio.run(models.get("b"))
    with pytest.raises(UnknownModelError):
        asyncio.run(models.get("x"))


def test_a_cancelled_get_cancels_nobody_elses_load(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    loads.hold["a"] = threading.Event()

    async def cancel() -> None:
        task = asyncio.create_task(models.get("a"))
        assert await asyncio.to_thread(loads.begun["a"].wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    loads.hold["a"].set()
    assert models["a"].name == "a"
    assert loads.count == {"a": 1}


def test_a_forked_child_has_what_was_loaded_and_loads_the_rest_itself(tmp_path: Path) -> None:
    """The parent forks while its thread builds `b`, with the frameworks' lock held; the child waits for nobody."""
    for name in "abc":
        bake_module(tmp_path, name, "helpers.runtime_fakes:plain")
    said = python_says(
        "import gc, os, pathlib, sys, threading, torch\n"
        "from helpers import runtime_fakes\nimport prebake\n"
        "models = prebake.Models(sys.argv[1])\n"
        "a = models['a'].model\n"
        "plain, building, parent = runtime_fakes.plain, threading.Event(), os.getpid()\n"
        "def slow():\n"
        "    if os.getpid() == parent: building.set(); forked.wait(60)\n"
        "    return plain()\n"
        "slow.__module__ = plain.__module__\n"
        "runtime_fakes.plain, forked = slow, threading.Event()\n"
        "threading.Thread(target=lambda: models['b']).start()\n"
        "building.wait(60)\n"
        "values = a.get_parameter('0.weight').sum().item()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    before = {s.name: s.state.value for s in models.status()}\n"
        "    same = models['a'].model is a and a.get_parameter('0.weight').sum().item() == values\n"
        "    models.wait(60)\n"
        "    print(before, same, models['b'].tier, models.ready, gc.isenabled(), flush=True)\n"
        "    os._exit(0)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "forked.set()\n"
        "print(code, models['b'].tier, gc.isenabled())",
        tmp_path,
    )
    assert said.splitlines() == [
        "{'a': 'ready', 'b': 'idle', 'c': 'idle'} True mapped True True",
        "0 mapped True",
    ]


def test_a_fork_waits_for_an_import_that_another_thread_began() -> None:
    said = python_says(
        "import os, threading\n"
        "from prebake.tiers import locks\n"
        "begun, go_on, done = threading.Event(), threading.Event(), []\n"
        "def importing():\n"
        "    with locks.IMPORTS: begun.set(); go_on.wait(60); done.append('imported')\n"
        "threading.Thread(target=importing).start()\n"
        "begun.wait(60)\n"
        "threading.Timer(0.3, go_on.set).start()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    with locks.IMPORTS: os._exit(0 if done else 1)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "with locks.IMPORTS: print(done)"
    )
    assert said.splitlines() == ["0", "['imported']"]


@pytest.mark.parametrize("pause", [0, 0.05, 0.2, 0.5])
def test_a_child_that_was_forked_while_its_parent_imports_loads_all_the_same(tiny_models: Path, pause: float) -> None:
    said = python_says(
        "import os, sys, time, prebake\n"
        "models = prebake.Models(sys.argv[1])\n"
        "models.start()\n"
        "time.sleep(float(sys.argv[2]))\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    print(models['caption'].tier, flush=True)\n"
        "    os._exit(0)\n"
        "code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])\n"
        "models.wait(120)\n"
        "print(code, models['caption'].tier)",
        tiny_models, pause,
    )  # fmt: skip
    assert said.splitlines() == ["mapped", "0 mapped"]


def test_mapped_weights_are_file_memory_that_a_child_shares_and_unload_gives_back(tmp_path: Path) -> None:
    """64 MB of weights: nearly nothing private to either process, and gone with the model's last user."""
    bake_module(tmp_path, "big", "helpers.runtime_fakes:big")
    said = python_says(
        "import gc, os, sys, torch, weakref, prebake\n"
        "from prebake.telemetry.timeline import Memory\n"
        "torch.set_num_threads(1)\n"  # a child of a process whose OpenMP threads have run must not use OpenMP
        "models = prebake.Models(sys.argv[1])\n"
        "before = Memory.now()\n"
        "model = models['big'].model\n"
        "total = model.weight.detach().sum()\n"
        "after = Memory.now()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    start = Memory.now()\n"
        "    good = torch.equal(model.weight.detach().sum(), total)\n"
        "    print((Memory.now().anonymous - start.anonymous) >> 20, good, flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(child, 0)\n"
        "print((after.file - before.file) >> 20, (after.anonymous - before.anonymous) >> 20)\n"
        "alive = weakref.ref(model)\n"
        "models.unload('big'); del model\n"
        "gc.collect()\n"
        "print(alive() is None, (after.file - Memory.now().file) >> 20)",
        tmp_path,
    )
    child, grown, gone = (line.split() for line in said.splitlines())
    assert int(child[0]) < 16
    assert child[1] == "True"
    assert int(grown[0]) >= 60
    assert int(grown[1]) < 32
    assert gone[0] == "True"
    assert int(gone[1]) >= 60
