"""`prebake bake` leaves a folder that is what it would write now, and says why it bakes another one again."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
from safetensors.torch import load_file

from helpers.baking import bake, declare, into
from prebake_build.baking import environment, freshness
from prebake_build.baking.sandbox import landlock_version
from prebake_build.cache.converted import Conversions
from prebake_build.cache.store import default_folder

pytestmark = [
    pytest.mark.usefixtures("in_process", "conversions"),
    pytest.mark.skipif(not landlock_version(), reason="without Landlock no converted models are kept"),
]
TORCH = version("torch").partition("+")[0]
ONE, TWO = f"sha256:{1:064}", f"sha256:{2:064}"
FACTORY = """
import torch
from torch import nn


def make():
    network = nn.Linear(3, 2)
    network.register_buffer("scale", torch.tensor(2.0), persistent=False)
    return network
"""


def other_version(monkeypatch: pytest.MonkeyPatch, package: str, now: str) -> None:
    for module in (environment, freshness):
        monkeypatch.setattr(module, "version", lambda name: now if name == package else version(name))


def test_another_torch_bakes_an_existing_folder_again_and_says_why(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, conversions: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    into(capsys, linear, "one")
    other_version(monkeypatch, "torch", "99.1")
    assert into(capsys, linear, "one")[0] == 0
    place = linear.parent / "one" / "m"
    assert f"[1/1] m: baking again: {place} was baked with torch {TORCH} (now 99.1)" in caplog.messages
    assert conversions == {"m": 2}
    assert len(Conversions().entries()) == 2


def test_a_build_of_the_same_version_for_other_hardware_is_up_to_date(
    linear: Path, capsys: pytest.CaptureFixture[str], conversions: Counter[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    into(capsys, linear, "one")
    other_version(monkeypatch, "torch", f"{TORCH}+cu999")
    assert into(capsys, linear, "one")[0] == 0
    assert conversions == {"m": 1}


def test_other_options_and_damage_are_said_too(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    into(capsys, linear, "one")
    place = linear.parent / "one" / "m"
    declare(linear.parent, linear.read_text() + "retries = 1\n")
    into(capsys, linear, "one")
    assert f"[1/1] m: baking again: {place} was baked from another checkpoint, or with other options" in caplog.messages
    os.truncate(place / "model.safetensors", 3)
    into(capsys, linear, "one")
    assert f"[1/1] m: baking again: {place}: differs from its manifest:\n  model.safetensors: expected " in caplog.text


@pytest.fixture
def own(linear: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A factory of the project, whose buffer is in no state dict; `models.toml`."""
    (linear.parent / "own_factory.py").write_text(FACTORY)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(linear.parent), os.environ["PYTHONPATH"]]))
    return declare(linear.parent, '[models.m]\nsource = "path:c"\nclass = "torch:own_factory:make"\n')


@pytest.mark.usefixtures("processes")
def test_a_changed_factory_is_baked_again_and_what_it_computes_is_new(
    own: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, conversions: Counter[str]
) -> None:
    place = own.parent / "out" / "m"
    bake(capsys, own)
    (own.parent / "own_factory.py").write_text(FACTORY.replace("2.0", "3.0"))
    bake(capsys, own)
    assert f"[1/1] m: baking again: {place} was baked with other code of own-factory" in caplog.messages
    assert load_file(place / "buffers.safetensors")["scale"].item() == 3.0
    bake(capsys, own)
    assert conversions == {"m": 2}


@pytest.mark.parametrize(
    ("code", "states", "expected"),
    [
        ({"a": ONE}, [{"a": ONE}], None),
        ({"a": TWO, "b": ONE}, [{"a": ONE, "b": ONE}], "a"),
        ({"a": TWO, "b": TWO}, [{"a": ONE}], "a, b"),
        ({"a": TWO}, [{"a": ONE}, {"a": TWO}], None),  # both give the same bytes
        ({"a": TWO}, [], None),
        ({"a": ONE, "torch": "2"}, [{"a": ONE, "torch": "1"}], None),  # the manifest has it
    ],
)
def test_the_entries_of_the_same_bytes_tell_of_which_code_a_folder_is(
    linear: Path, capsys: pytest.CaptureFixture[str], code: dict[str, str], states: list[dict[str, str]],
    expected: str | None,
) -> None:  # fmt: skip
    bake(capsys, linear)
    place = linear.parent / "out" / "m"
    (entry,) = Conversions().entries()
    kept = [replace(entry, versions=versions) for versions in states]
    kept += [replace(entry, versions={}, set_digest="sha256:0"), replace(entry, versions={}, recipe="sha256:0")]
    assert freshness.why_other_code(place, entry.recipe, code, kept) == (
        expected and f"{place} was baked with other code of {expected}"
    )


def test_bake_says_that_it_is_up_to_date_without_the_cache(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, conversions: Counter[str]
) -> None:
    bake(capsys, linear)
    shutil.rmtree(default_folder() / "converted")
    bake(capsys, linear)
    assert "[1/1] m: up to date" in caplog.messages
    assert (conversions, Conversions().entries()) == ({"m": 1}, ())
