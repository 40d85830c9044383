"""Many models: each loaded when it is used or in the background, unloaded, and told about by name."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from pathlib import Path

import pytest

from helpers.pretended_loads import Loads, loaded_of, models_of, states
from helpers.runtime_fakes import bake_module, manifest_of, write_manifest
from prebake.baked.manifest import Loading
from prebake.baked.model import BakedModel, find_models
from prebake.errors import ConfigError, DocumentError, UnknownModelError
from prebake.loading import models as models_module
from prebake.loading.models import Models
from prebake.loading.prefetch import Prefetch
from prebake.snapshot import point
from prebake.snapshot.point import ENV_DUMP
from prebake.startup.quickstart import Collector
from prebake.telemetry.status import State
from prebake.tiers.loader import LoadedModel


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


def test_a_process_that_will_be_dumped_leaves_the_weights_to_those_restored(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[list[str]] = []
    monkeypatch.setattr(Prefetch, "add", lambda self, paths: read.append(sorted(path.parent.name for path in paths)))
    monkeypatch.setenv(ENV_DUMP, "{}")
    models = models_of(tmp_path, loads)
    models.start()
    models.wait()
    assert read == []
    monkeypatch.delenv(ENV_DUMP)
    models._prefetch_unread()
    assert read == [["a", "b", "c"]]
    assert any(function.__name__ == "_after_restore" for function in point._state.after)


def test_weights_are_read_ahead_once_nothing_loads(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Imports of a model that still loads need the disk first."""
    read: list[list[str]] = []
    monkeypatch.setattr(Prefetch, "add", lambda self, paths: read.append([path.parent.name for path in paths]))
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
    asked: list[Path] = []
    monkeypatch.setattr(Prefetch, "first", lambda self, paths: asked.extend(paths))
    models["b"]
    asyncio.run(models.get("a"))
    assert [path.parent.name for path in asked] == ["b", "a"]
    assert read[1:] == [["b"]]


def test_unloading_forgets_a_model_and_the_next_use_loads_it_anew(tmp_path: Path, loads: Loads) -> None:
    models = models_of(tmp_path, loads)
    first = weakref.ref(models["a"].model)
    models.unload("a")
    gc.collect()
    assert first() is None
    assert states(models)["a"] == "idle"
    assert models["a"].name == "a"
    assert loads.count["a"] == 2


def test_models_that_refer_to_themselves_are_gone_after_every_reload(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frozen objects are never collected: what was frozen when a model was loaded must not hold it."""
    monkeypatch.setattr(models_module, "collector", Collector())

    def load(baked: BakedModel, *_: object) -> LoadedModel:
        loaded = loads(baked)
        loaded.model.itself = loaded.model
        return loaded

    models = models_of(tmp_path, load)
    models.start()
    models.wait()
    alive = []
    for _ in range(5):
        for name in "abc":
            alive.append(weakref.ref(models[name].model))
            models.unload(name)
    alive += [weakref.ref(models[name].model) for name in "abc"]
    for thread in threading.enumerate():
        if thread.name.startswith("prebake-"):  # it holds what it loaded for a moment more
            thread.join(60)
    del models
    gc.collect()
    assert [reference() for reference in alive] == [None] * 18


def test_models_that_were_never_loaded_thaw_nothing_when_they_go(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(models_module, "collector", Collector())
    models = models_of(tmp_path, loads)
    models.start()
    models.wait()
    frozen = gc.get_freeze_count()
    Models(tmp_path)
    gc.collect()
    assert frozen > 0
    assert gc.get_freeze_count() > frozen // 2  # some go by their own count of references, a thaw makes it 0
    del models
    gc.collect()
    assert gc.get_freeze_count() == 0


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
    assert str(error.value) == f'{tmp_path}/b: its manifest names another model, "a"'
    (tmp_path / "b" / "manifest.json").unlink()
    with pytest.raises(DocumentError) as document_error:
        Models(tmp_path)
    assert str(document_error.value) == f"{tmp_path}/b/manifest.json: there is no such file (expected a manifest)"


def test_root_and_tiers_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bake_module(tmp_path, "model", "helpers.runtime_fakes:plain")
    monkeypatch.setenv("PREBAKE_ROOT", str(tmp_path))
    monkeypatch.setenv("PREBAKE_TIERS", "read,ordinary")
    assert Models()["model"].tier == "read"
    assert Models(tiers=["mapped"])["model"].tier == "mapped"
    monkeypatch.setenv("PREBAKE_TIERS", "fast")
    with pytest.raises(ConfigError, match=r'^"fast" is not a tier'):
        Models()
