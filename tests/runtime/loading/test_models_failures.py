"""A load that fails, or takes too long, is told as what it is, tried again, and in no other model's way."""

from __future__ import annotations

import asyncio
import gc
import logging
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.pretended_loads import Loads, models_of, states
from prebake.baked.manifest import Loading
from prebake.errors import ConfigError, LoadError, LoadTimeoutError
from prebake.loading import models as models_module
from prebake.loading.prefetch import Prefetch


@pytest.fixture
def naps(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses between tries, none of which is made."""
    naps: list[float] = []
    monkeypatch.setattr(models_module, "time", SimpleNamespace(monotonic=time.monotonic, sleep=naps.append))
    return naps


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
    with caplog.at_level(logging.WARNING, logger="prebake.loading.models"):
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


def test_a_model_that_was_loaded_is_given_although_no_thread_can_read_ahead(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The load was the last that the system's limit on threads allowed."""
    plain = threading.Thread.start

    def start(thread: threading.Thread) -> None:
        if thread.name == "prebake-prefetch":
            raise RuntimeError("can't start new thread")
        plain(thread)

    monkeypatch.setattr(threading.Thread, "start", start)
    models = models_of(tmp_path, loads, a=Loading(timeout=10), b=Loading(timeout=10))
    assert [models[name].name for name in ("a", "b")] == ["a", "b"]
    assert [record.name for record in caplog.records if record.levelno == logging.WARNING] == [
        "prebake.loading.prefetch"
    ]


def test_a_model_that_was_loaded_is_given_whatever_becomes_of_the_hint(
    tmp_path: Path, loads: Loads, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise OSError("unforeseen")

    monkeypatch.setattr(Prefetch, "add", fail)
    assert models_of(tmp_path, loads, a=Loading(timeout=10))["a"].name == "a"
    assert caplog.record_tuples == [
        ("prebake.loading.models", logging.WARNING, "a: its weights are not read ahead: unforeseen")
    ]
