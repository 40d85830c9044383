"""Many models: lazy, in parallel, each loaded once, and no error, timeout, fork or thread in another's way."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from prebake import models as models_module
from prebake.errors import ConfigError, DocumentError, LoadError, LoadTimeoutError, UnknownModelError
from prebake.families import BakedModel, find_models
from prebake.loader import LoadedModel
from prebake.manifest import Loading
from prebake.models import Models, State
from runtime_fakes import bake_module, manifest_of, python_says, write_manifest

Load = Callable[..., LoadedModel]


class Network:
    """A model that weighs nothing."""


def loaded_of(baked: BakedModel) -> LoadedModel:
    model: Any = Network()
    return LoadedModel(name=baked.name, model=model, tier="mapped", fallback_reason=None, seconds=0.0, baked=baked)


class Loads:
    """A load that costs nothing, counts, fails or waits as it is told."""

    def __init__(self) -> None:
        self.count: Counter[str] = Counter()
        self.errors: dict[str, list[BaseException]] = {}
        """Model → what its next loads raise."""
        self.hold: dict[str, threading.Event] = {}
        """Model → what its load waits for."""
        self.begun: dict[str, threading.Event] = {name: threading.Event() for name in "abc"}

    def __call__(self, baked: BakedModel, *_: object) -> LoadedModel:
        self.count[baked.name] += 1
        self.begun[baked.name].set()
        if baked.name in self.hold:
            assert self.hold[baked.name].wait(60)
        if self.errors.get(baked.name):
            raise self.errors[baked.name].pop(0)
        return loaded_of(baked)


@pytest.fixture
def loads() -> Iterator[Loads]:
    loads = Loads()
    yield loads
    for event in loads.hold.values():
        event.set()


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, none of which is made."""
    naps: list[float] = []
    monkeypatch.setattr(models_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=naps.append))
    return naps


def models_of(root: Path, loads: Load, **loading: Loading) -> Models:
    """Models `a`, `b` and `c`, or those named with how they are loaded."""
    for name, how in (loading or dict.fromkeys("abc", Loading())).items():
        write_manifest(root, manifest_of(name, loading=how))
    models = Models(root)
    models._load = loads
    return models


def states(models: Models) -> dict[str, str]:
    return {status.name: status.state.value for status in models.status()}


def test_nothing_is_loaded_until_it_is_used(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    assert states(models) == {"a": "idle", "b": "idle", "c": "idle"}
    assert not loads.count
    assert models["b"].name == "b"
    assert states(models) == {"a": "idle", "b": "ready", "c": "idle"}
    assert models["b"] is models["b"]
    assert loads.count == {"b": 1}


def test_start_returns_at_once_and_loads_everything_in_the_background(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    loads.hold = {name: threading.Event() for name in "abc"}
    models.start()
    assert states(models) == {"a": "loading", "b": "loading", "c": "loading"}
    assert not models.ready
    for name in "abc":
        loads.hold[name].set()
    models.wait()
    assert states(models) == {"a": "ready", "b": "ready", "c": "ready"}
    assert models.ready
    assert loads.count == {"a": 1, "b": 1, "c": 1}


def test_different_models_load_at_the_same_time(tmp_path: Path) -> None:
    """Each load waits until the others are under way."""
    together = threading.Barrier(3, timeout=60)

    def load(baked: BakedModel, *_: object) -> LoadedModel:
        together.wait()
        return loaded_of(baked)

    models = models_of(tmp_path, load)
    models.start()
    models.wait()


def test_weights_are_read_ahead_once_nothing_loads(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports of a model that still loads need the disk first."""
    read: list[list[str]] = []
    monkeypatch.setattr("prebake.prefetch.prefetch", lambda paths: read.append([path.parent.name for path in paths]))
    loads.hold = {name: threading.Event() for name in "abc"}
    models = models_of(tmp_path, loads)
    models.start()
    loads.hold["a"].set()
    loads.hold["b"].set()
    assert (models["a"].name, models["b"].name) == ("a", "b")
    assert read == []
    loads.hold["c"].set()
    models.wait()
    assert [sorted(names) for names in read] == [["a", "b", "c"]]
    models.unload("b")
    models["b"]
    assert read[1:] == [["b"]]


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
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "RETRY_PAUSE", 0.0)
    calls = iter(range(10**9))

    def load(baked: BakedModel, *_: object) -> LoadedModel:
        if next(calls) % 3 == 0:
            raise RuntimeError("every third time")
        return loaded_of(baked)

    models = models_of(tmp_path, load)
    logging.getLogger("prebake.models").setLevel(logging.CRITICAL)

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
    logging.getLogger("prebake.models").setLevel(logging.NOTSET)
    assert not any(worker.is_alive() for worker in workers)


def test_the_error_of_one_model_hides_neither_anothers_nor_a_success(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    loads.errors = {"a": [RuntimeError("first")], "b": [LoadError("b: second")]}
    models.start()
    with pytest.raises(RuntimeError, match=r"^first$"):
        models.wait()
    assert {status.name: status.error for status in models.status()} == {
        "a": "RuntimeError: first", "b": "b: second", "c": None,
    }  # fmt: skip
    assert models["c"].name == "c"
    with pytest.raises(LoadError, match=r"^b: second$"):
        models["b"]


def test_a_wait_that_is_too_short_says_so_and_a_later_one_finds_the_model(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads, a=Loading(timeout=0.01))
    loads.hold["a"] = threading.Event()
    with pytest.raises(LoadTimeoutError) as error:
        models["a"]
    assert str(error.value) == "a: not loaded within 0.01 s (still loading: ask again, or raise its timeout)"
    assert isinstance(error.value, TimeoutError)
    with pytest.raises(LoadTimeoutError, match=r"^a: not loaded within 0 s "):
        models.wait(0)
    assert states(models) == {"a": "loading"}
    loads.hold["a"].set()
    models._slots["a"].flight.result(60)  # type: ignore[union-attr]
    assert models["a"].name == "a"
    assert loads.count == {"a": 1}


def test_waiting_for_all_honours_each_models_own_timeout(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads, a=Loading(timeout=0.01), b=Loading())
    loads.hold["a"] = threading.Event()
    with pytest.raises(LoadTimeoutError, match=r"^a: not loaded within 0\.01 s "):
        models.wait()
    assert models["b"].name == "b"


def test_a_load_that_ends_with_a_timeout_of_its_own_is_told_as_that(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads, a=Loading(timeout=60), b=Loading())
    loads.errors = {"a": [TimeoutError("the disk took too long")], "b": [TimeoutError("this one too")]}
    with pytest.raises(TimeoutError, match=r"^the disk took too long$"):
        models["a"]
    with pytest.raises(TimeoutError, match=r"^this one too$"):
        asyncio.run(models.get("b"))


def test_a_failed_load_is_tried_again_with_growing_pauses(
    tmp_path: Path, loads: Loads, naps: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    models = models_of(tmp_path, loads, a=Loading(retries=3))
    loads.errors["a"] = [RuntimeError(f"no. {n}") for n in (1, 2, 3)]
    with caplog.at_level(logging.WARNING, logger="prebake.models"):
        assert models["a"].name == "a"
    assert naps == [0.2, 0.4, 0.8]
    assert caplog.messages == [
        "a: try 1 failed (no. 1); again in 0.2 s",
        "a: try 2 failed (no. 2); again in 0.4 s",
        "a: try 3 failed (no. 3); again in 0.8 s",
    ]


def test_the_last_try_s_error_is_the_models(tmp_path: Path, loads: Loads, naps: list[float]) -> None:
    models = models_of(tmp_path, loads, a=Loading(retries=1))
    loads.errors["a"] = [RuntimeError("first"), LoadError("second")]
    with pytest.raises(LoadError, match=r"^second$"):
        models["a"]
    assert (loads.count["a"], len(naps)) == (2, 1)


def test_pauses_end_at_five_seconds(tmp_path: Path, loads: Loads, naps: list[float]) -> None:
    models = models_of(tmp_path, loads, a=Loading(retries=10))
    loads.errors["a"] = [RuntimeError("x") for _ in range(10)]
    assert models["a"].name == "a"
    assert naps == [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0, 5.0, 5.0, 5.0]


def test_wrong_configuration_is_not_tried_again(tmp_path: Path, loads: Loads, naps: list[float]) -> None:
    models = models_of(tmp_path, loads, a=Loading(retries=3))
    loads.errors["a"] = [ConfigError("no such class")]
    with pytest.raises(ConfigError, match=r"^no such class$"):
        models["a"]
    assert (loads.count["a"], naps) == (1, [])


def test_a_failed_model_rests_and_is_then_tried_again(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(tmp_path, loads)
    loads.errors["a"] = [RuntimeError("once")]
    for _ in range(3):
        with pytest.raises(RuntimeError, match=r"^once$"):
            models["a"]
    assert (loads.count["a"], states(models)["a"]) == (1, "failed")
    monkeypatch.setattr(models_module, "RETRY_PAUSE", 0.0)
    assert models["a"].name == "a"
    assert loads.count["a"] == 2


def test_a_thread_that_cannot_be_started_is_an_error_and_no_hang(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = models_of(tmp_path, loads, a=Loading(timeout=30))

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", refuse)
        with pytest.raises(RuntimeError, match=r"^can't start new thread$"):
            models["a"]
    assert gc.isenabled()
    monkeypatch.setattr(models_module, "RETRY_PAUSE", 0.0)
    assert models["a"].name == "a"


def test_get_does_not_block_the_event_loop(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    loads.hold = {name: threading.Event() for name in "ab"}

    async def answer() -> list[str]:
        waiting = [asyncio.create_task(models.get(name)) for name in "aab"]
        for _ in range(100):  # the loop turns while the loads wait for us
            await asyncio.sleep(0)
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
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    loads.hold["a"].set()
    assert models["a"].name == "a"
    assert loads.count == {"a": 1}


def test_unloading_forgets_a_model_and_the_next_use_loads_it_anew(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    first = weakref.ref(models["a"].model)
    models.unload("a")
    gc.collect()
    assert first() is None
    assert states(models)["a"] == "idle"
    assert models["a"].name == "a"
    assert loads.count["a"] == 2


def test_unloading_leaves_a_load_that_is_under_way(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    loads.hold["a"] = threading.Event()
    models.start()
    models.unload("a")
    assert states(models)["a"] == "loading"


def test_models_that_nobody_holds_are_forgotten_with_what_they_loaded(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    model = weakref.ref(models["a"].model)
    del models
    gc.unfreeze()
    gc.collect()
    assert model() is None


def test_the_collector_runs_again_after_the_last_load(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    loads.hold["a"] = threading.Event()
    loads.errors["b"] = [RuntimeError("x")]
    assert gc.isenabled()
    models.start()
    with pytest.raises(RuntimeError):
        models["b"]
    assert not gc.isenabled()
    loads.hold["a"].set()
    models["a"], models["c"]
    assert gc.isenabled()


def test_readiness_is_that_of_the_required_models(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads, a=Loading(), b=Loading(required=False))
    models.wait(required_only=True)
    assert states(models) == {"a": "ready", "b": "idle"}
    assert models.ready


def test_a_status_tells_what_became_of_a_model(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads, a=Loading(required=False))
    models["a"]
    (status,) = models.status()
    assert status.state is State.READY
    assert status.to_dict() == {
        "state": "ready", "required": False, "tier": "mapped", "fallback_reason": None, "seconds": 0.0, "error": None,
    }  # fmt: skip


def test_models_are_a_mapping_of_names(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    assert (list(models), len(models), models.names, "a" in models, "x" in models) == (
        ["a", "b", "c"], 3, ("a", "b", "c"), True, False,
    )  # fmt: skip
    assert not loads.count


def test_an_unknown_name_lists_the_known_ones(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads, caption=Loading(), ocr=Loading())
    for use in (models.__getitem__, models.unload):
        with pytest.raises(UnknownModelError) as error:
            use("captoin")
        assert str(error.value) == (
            f'{tmp_path}: no model "captoin" (there are: caption, ocr): did you mean "caption"?'
        )
    assert isinstance(error.value, KeyError)


def test_a_root_is_a_folder_of_model_folders(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as error:
        Models(tmp_path / "absent")
    assert str(error.value) == (
        f"{tmp_path}/absent: there is no such folder (expected the root of baked models; set PREBAKE_ROOT or --root)"
    )
    with pytest.raises(ConfigError) as error:
        Models(tmp_path)
    assert str(error.value) == f"{tmp_path}: holds no baked model (run: prebake bake --output {tmp_path})"
    write_manifest(tmp_path, manifest_of("a"))
    (tmp_path / ".baking-b.x").mkdir()
    (tmp_path / "notes.txt").write_text("not a folder")
    assert [baked.name for baked in find_models(tmp_path)] == ["a"]
    (tmp_path / "a").rename(tmp_path / "b")
    with pytest.raises(ConfigError) as error:
        Models(tmp_path)
    assert str(error.value) == f'{tmp_path}/b: its manifest is that of the model "a"'
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(DocumentError) as document_error:
        Models(tmp_path)
    assert str(document_error.value) == f"{tmp_path}/b/manifest.json: there is no such file (expected a manifest)"


def test_root_and_tiers_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bake_module(tmp_path, "model", "runtime_fakes:plain")
    monkeypatch.setenv("PREBAKE_ROOT", str(tmp_path))
    monkeypatch.setenv("PREBAKE_TIERS", "read,ordinary")
    assert Models()["model"].tier == "read"
    assert Models(tiers=["mapped"])["model"].tier == "mapped"
    monkeypatch.setenv("PREBAKE_TIERS", "fast")
    with pytest.raises(ConfigError, match=r'^"fast" is not a tier'):
        Models()


def test_a_forked_child_has_what_was_loaded_and_loads_the_rest_itself(tmp_path: Path) -> None:
    """The parent forks while its thread builds `b`, with the frameworks' lock held; the child waits for nobody."""
    for name in "abc":
        bake_module(tmp_path, name, "runtime_fakes:plain")
    said = python_says(
        "import gc, os, pathlib, sys, threading, torch\n"
        "import runtime_fakes, prebake\n"
        "models = prebake.Models(sys.argv[1])\n"
        "a = models['a'].model\n"
        "plain, building, parent = runtime_fakes.plain, threading.Event(), os.getpid()\n"
        "def slow():\n"
        "    if os.getpid() == parent: building.set(); forked.wait(60)\n"
        "    return plain()\n"
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


def test_mapped_weights_are_file_memory_that_a_child_shares_and_unload_gives_back(tmp_path: Path) -> None:
    """64 MB of weights: nearly nothing private to either process, and gone with the model's last user."""
    bake_module(tmp_path, "big", "runtime_fakes:big")
    said = python_says(
        "import gc, os, sys, torch, weakref, prebake\n"
        "from prebake.timeline import Memory\n"
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
