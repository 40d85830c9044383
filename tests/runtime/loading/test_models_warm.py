"""`Models(warm=True)` calls each model before it counts as loaded; a call that fails is logged, and fails nothing."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from helpers import warmups
from helpers.runtime_fakes import bake_module, python_says
from prebake.baked.manifest import Loading
from prebake.baked.warmup import Inputs, Warmup, Zeros
from prebake.errors import LoadTimeoutError
from prebake.loading.models import Models
from prebake.telemetry import timeline
from prebake.telemetry.status import State


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("CALLS", []), ("ENDED", []), ("BEGUN", threading.Event()), ("RELEASE", threading.Event())):
        monkeypatch.setattr(warmups, name, value)


def bake(root: Path, timeout: float | None = None, **declared: Warmup | None) -> Path:
    """Models of two layers, each with the warm-up that is declared."""
    for name, warmup in declared.items():
        bake_module(root, name, "helpers.runtime_fakes:plain", loading=Loading(warmup=warmup, timeout=timeout))
    return root


@pytest.fixture
def before() -> int:
    """How many spans there were."""
    return len(timeline.process.spans)


def warmed(models: Models, before: int) -> list[str | None]:
    """The models of the spans since then."""
    return [span.model for span in models.timeline.spans[before:] if span.name == "warm up"]


def test_a_model_is_called_before_it_counts_as_loaded(tmp_path: Path, before: int) -> None:
    models = Models(bake(tmp_path, a="helpers.warmups:waiting"), warm=True)
    models.start()
    assert warmups.BEGUN.wait(60)
    assert [status.state for status in models.status()] == [State.LOADING]
    assert not models.ready
    with pytest.raises(LoadTimeoutError):
        models.wait(0.01)
    warmups.RELEASE.set()
    assert models["a"].name == "a"
    assert (warmups.ENDED, models.ready, warmed(models, before)) == (["a"], True, ["a"])


def test_each_load_calls_and_later_uses_do_not(tmp_path: Path, before: int) -> None:
    models = Models(bake(tmp_path, a="helpers.warmups:note", b=None), warm=True)
    models.wait()
    assert models["a"] is models["a"]
    assert [loaded for loaded, _ in warmups.CALLS] == [models["a"]]
    assert warmed(models, before) == ["a"]
    models.unload("a")
    assert models["a"].tier == "mapped"
    assert len(warmups.CALLS) == 2


@pytest.mark.parametrize(
    ("argument", "environment", "expected"),
    [(None, None, 0), (None, "1", 1), (None, "0", 0), (None, "", 0), (False, "1", 0), (True, "0", 1)],
)
def test_the_argument_comes_before_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, argument: Any, environment: str | None, expected: int
) -> None:
    monkeypatch.delenv("PREBAKE_WARM", raising=False)
    if environment is not None:
        monkeypatch.setenv("PREBAKE_WARM", environment)
    assert Models(bake(tmp_path, a="helpers.warmups:note"), warm=argument)["a"].name == "a"
    assert len(warmups.CALLS) == expected


def test_a_call_that_fails_is_logged_and_the_model_is_loaded(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root = bake(
        tmp_path, a=Inputs(values={"input": Zeros(shape=(2, 5))}), b="helpers.warmups:leaving", c="planted:warm",
        d=Inputs(values={"input": Zeros(shape=(2, 4))}),
    )  # fmt: skip
    models = Models(root, warm=True)
    with caplog.at_level(logging.WARNING, logger="prebake"):
        models.wait()
    assert sorted(caplog.messages) == [
        f'{root}/c: loading.warmup: "planted:warm" is code that the application does not allow (allowed: helpers): a '
        "manifest alone must not decide what is imported. If you trust it, allow its module: PREBAKE_ALLOW=planted, "
        '--allow planted, or allow=["planted"] for prebake.Models and prebake.load (the model is used all the same)',
        "a: its warm-up failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x4) (the model is "
        "used all the same)",
        "b: its warm-up failed: SystemExit: 3 (the model is used all the same)",
    ]
    assert [(status.state, status.tier, status.fallback_reason, status.error) for status in models.status()] == [
        (State.READY, "mapped", None, None)
    ] * 4


def test_the_models_own_timeout_counts_the_call(tmp_path: Path) -> None:
    models = Models(bake(tmp_path, timeout=0.01, a="helpers.warmups:waiting"), warm=True)
    models.start()
    assert warmups.BEGUN.wait(60)
    with pytest.raises(LoadTimeoutError) as error:
        models["a"]
    assert str(error.value) == (
        "a: not loaded within 0.01 s (still loading: ask again, or raise its timeout)"
    )  # fmt: skip
    warmups.RELEASE.set()


def test_a_call_that_asks_for_another_model_waits_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    models = Models(bake(tmp_path, a="helpers.warmups:asking", b="helpers.warmups:note"), warm=True)
    monkeypatch.setitem(warmups.MODELS, "models", models)
    models.wait(60)
    assert (warmups.ENDED, len(warmups.CALLS)) == (["b"], 1)


def test_a_fork_waits_for_calls_of_other_threads(tmp_path: Path) -> None:
    """The call may hold a lock of a framework or be in the middle of an import."""
    said = python_says(
        "import os, sys, threading, prebake\n"
        "from helpers import warmups\n"
        "models = prebake.Models(sys.argv[1], warm=True)\n"
        "models.start()\n"
        "assert warmups.BEGUN.wait(60)\n"
        "threading.Timer(0.3, warmups.RELEASE.set).start()\n"
        "child = os.fork()\n"
        "if not child:\n"
        "    print(warmups.ENDED, models['a'].tier, flush=True)\n"
        "    os._exit(0)\n"
        "print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), models['a'].warm_up())",
        bake(tmp_path, a="helpers.warmups:waiting"),
        PYTHONWARNINGS="ignore",
    )
    assert said == "['a'] mapped\n0 True"


def test_a_call_may_fork(tmp_path: Path) -> None:
    said = python_says(
        "import sys, prebake\n"
        "from helpers import warmups\n"
        "models = prebake.Models(sys.argv[1], warm=True)\n"
        "models.wait(100)\n"
        "print(warmups.ENDED)",
        bake(tmp_path, a="helpers.warmups:forking"),
        PYTHONWARNINGS="ignore",
    )
    assert said == "['7']"
