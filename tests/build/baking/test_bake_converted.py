"""`prebake bake` copies a model that was baked before from the build cache, if what decides its bytes is the same."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace

import pytest

from helpers.baking import declare, flip_byte, into, names, prebake, tree
from prebake.baked.manifest import Manifest
from prebake_build.baking import bake as baking
from prebake_build.baking import environment
from prebake_build.baking.sandbox import landlock_version
from prebake_build.cache.converted import Conversions
from prebake_build.cache.store import default_folder
from prebake_build.declared.lock import Lock

pytestmark = [
    pytest.mark.usefixtures("in_process", "conversions"),
    pytest.mark.skipif(not landlock_version(), reason="without Landlock no converted models are kept"),
]
TAKEN = "[1/1] m: converted before: copied from the build cache, and every byte hashed"


def kept() -> list[str]:
    return [entry.key for entry in Conversions().entries()]


def test_a_second_output_is_copied_and_has_the_same_bytes_modes_and_times(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, conversions: Counter[str]
) -> None:
    assert into(capsys, linear, "one")[0] == 0
    assert TAKEN not in caplog.messages
    assert into(capsys, linear, "two")[0] == 0
    assert TAKEN in caplog.messages
    assert conversions == {"m": 1}
    assert tree(linear.parent / "one" / "m") == tree(linear.parent / "two" / "m")
    assert names(linear.parent / "two") == ["m"]


def test_the_checkpoint_need_not_be_there(
    linear: Path, capsys: pytest.CaptureFixture[str], conversions: Counter[str]
) -> None:
    assert prebake(capsys, "lock", "--models", linear)[0] == 0
    assert into(capsys, linear, "one")[0] == 0
    shutil.rmtree(default_folder() / "checkpoints")
    shutil.rmtree(linear.parent / "c")
    assert into(capsys, linear, "two")[0] == 0
    assert conversions == {"m": 1}


def test_force_converts_and_replaces_the_entry(
    linear: Path, capsys: pytest.CaptureFixture[str], conversions: Counter[str]
) -> None:
    into(capsys, linear, "one")
    (entry,) = Conversions().entries()
    before = entry.folder.stat().st_ino
    assert into(capsys, linear, "two", "--force")[0] == 0
    assert conversions == {"m": 2}
    assert (kept(), entry.folder.stat().st_ino != before) == ([entry.key], True)


@pytest.mark.parametrize("way", ["option", "variable"])
def test_a_size_of_0_keeps_and_takes_nothing(
    linear: Path, capsys: pytest.CaptureFixture[str], conversions: Counter[str], monkeypatch: pytest.MonkeyPatch,
    way: str,
) -> None:  # fmt: skip
    into(capsys, linear, "one")
    monkeypatch.setenv("PREBAKE_CONVERTED_SIZE", "0" if way == "variable" else "1 GB")
    assert into(capsys, linear, "two", *(("--converted-size", "0") if way == "option" else ()))[0] == 0
    assert conversions == {"m": 2}


def test_a_size_that_is_none_is_wrong_use(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, err = into(capsys, linear, "one", "--converted-size", "much")
    assert (code, err.splitlines()[-1]) == (
        2, 'prebake bake: error: argument --converted-size: size: "much" is not a size (expected for example "1.5 GB" '
           'or "512 MiB")'
    )  # fmt: skip


def test_a_damaged_entry_is_said_and_converted_again(
    linear: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, conversions: Counter[str]
) -> None:
    into(capsys, linear, "one")
    (entry,) = Conversions().entries()
    flip_byte(entry.folder / "files" / "model.safetensors")
    assert into(capsys, linear, "two")[0] == 0
    assert conversions == {"m": 2}
    assert (
        f"{entry.folder} (m): not the files that were promised:\n  model.safetensors: expected sha256 " in caplog.text
    )
    assert "\nConverting it again.\n" in caplog.text
    assert tree(linear.parent / "one" / "m") == tree(linear.parent / "two" / "m")
    Conversions().entries()[0].check()


@pytest.mark.parametrize("change", ['dtype = "float16"', "retries = 1", 'shard_size = "20 B"', "arguments = {}"])
def test_other_options_are_another_entry(
    linear: Path, capsys: pytest.CaptureFixture[str], conversions: Counter[str], change: str
) -> None:
    into(capsys, linear, "one")
    declare(linear.parent, linear.read_text() + change + "\n")
    assert into(capsys, linear, "two")[0] == 0
    assert conversions == {"m": 1 if change == "arguments = {}" else 2}


def test_what_requires_a_package_that_no_key_has_is_not_kept(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(environment, "PACKAGES", ("safetensors",))
    monkeypatch.setattr(environment, "_own", lambda module: {})
    assert into(capsys, linear, "one")[0] == 0
    assert kept() == []


# --- the lock ----------------------------------------------------------------------------------------------------


def test_locked_accepts_what_comes_from_the_cache_or_refuses_it(
    linear: Path, capsys: pytest.CaptureFixture[str], conversions: Counter[str]
) -> None:
    assert prebake(capsys, "lock", "--models", linear)[0] == 0
    assert into(capsys, linear, "one", "--record")[0] == 0
    assert into(capsys, linear, "two", "--locked")[0] == 0
    lock = Lock.read(linear.with_suffix(".lock"))
    text = linear.with_suffix(".lock").read_text()
    baked = lock.models["m"].baked
    assert baked
    linear.with_suffix(".lock").write_text(text.replace(baked.set_digest, "sha256:" + "0" * 64))
    code, err = into(capsys, linear, "three", "--locked")
    assert (code, conversions) == (1, {"m": 1})
    assert f'set_digest: locked "sha256:{"0" * 64}", now "{baked.set_digest}"' in err
    assert "`prebake bake --record m` takes this result on." in err
    assert names(linear.parent / "three") == []


def test_what_the_lock_refuses_is_not_kept(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(capsys, "lock", "--models", linear)[0] == 0
    assert into(capsys, linear, "one", "--record", "--converted-size", "0")[0] == 0
    digest = Manifest.read(linear.parent / "one" / "m").set_digest
    lock = linear.with_suffix(".lock")
    lock.write_text(lock.read_text().replace(digest, "sha256:" + "0" * 64))
    assert into(capsys, linear, "two", "--locked")[0] == 1
    assert kept() == []


# --- disks and systems -------------------------------------------------------------------------------------------


def test_room_for_the_copy_is_looked_at_before(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    into(capsys, linear, "one")
    size = Conversions().entries()[0].size
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=10, total=1000))
    code, err = into(capsys, linear, "two")
    assert (code, err.splitlines()[-1]) == (
        1, f"prebake: error: {linear.parent}/two: the model m takes {size:,} bytes, and 10 are free: free some space, "
           "or name another folder with --output"
    )  # fmt: skip
    assert names(linear.parent / "two") == []


def test_a_disk_that_fills_up_while_it_is_copied(
    linear: Path, capsys: pytest.CaptureFixture[str], small_disk: Callable[[Path, str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    into(capsys, linear, "one")
    small_disk(linear.parent / "two", "4k")
    monkeypatch.setattr(baking, "check_space", lambda folder, size: None)
    code, err = into(capsys, linear, "two")
    assert (code, err.splitlines()[-1]) == (
        1, f"prebake: error: {linear.parent}/two: cannot write the model m: No space left on device (0 bytes are "
           "free): free some space, then bake again"
    )  # fmt: skip
    assert names(linear.parent / "two") == []
    Conversions().entries()[0].check()


def test_a_cache_on_another_disk_is_copied_from(
    linear: Path, capsys: pytest.CaptureFixture[str], small_disk: Callable[[Path, str], Path],
    conversions: Counter[str],
) -> None:  # fmt: skip
    cache = small_disk(linear.parent / "cache", "1m")
    for output in ("one", "two"):
        assert into(capsys, linear, output, "--cache", cache)[0] == 0
    assert conversions == {"m": 1}
    assert tree(linear.parent / "one" / "m") == tree(linear.parent / "two" / "m")


def test_a_cache_that_may_only_be_read_is_taken_from_and_not_written(
    linear: Path, capsys: pytest.CaptureFixture[str], conversions: Counter[str], caplog: pytest.LogCaptureFixture
) -> None:
    place = default_folder()
    assert prebake(capsys, "lock", "--models", linear)[0] == 0
    into(capsys, linear, "one")
    mounting = (["mount", "--bind", f"{place}", f"{place}"], ["mount", "-o", "remount,ro,bind", f"{place}"])
    if os.geteuid() != 0 or any(subprocess.run(command, capture_output=True).returncode for command in mounting):
        pytest.skip("cannot mount read-only here")
    try:
        assert into(capsys, linear, "two")[0] == 0
        assert conversions == {"m": 1}
        declare(linear.parent, linear.read_text() + "retries = 1\n")
        assert into(capsys, linear, "two")[0] == 0
        assert conversions == {"m": 2}
        assert any(message.startswith("the converted model is not kept: ") and "Read-only file system" in message
                   for message in caplog.messages)  # fmt: skip
    finally:
        subprocess.run(["umount", "-l", place], check=True)
    assert len(kept()) == 1


def test_without_landlock_nothing_is_kept_and_that_is_said(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(baking, "landlock_version", lambda: 0)
    assert into(capsys, linear, "one")[0] == 0
    assert kept() == []
    message = ("converted models are neither taken from the build cache nor kept: this system lacks Landlock (Linux "
               "5.19), which keeps the process that reads a checkpoint from changing them")  # fmt: skip
    assert message in caplog.messages
    caplog.clear()
    assert into(capsys, linear, "two", "--converted-size", "0")[0] == 0
    assert message not in caplog.messages


# --- two at once -------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("processes")
def test_two_builds_of_one_model_convert_it_once_and_the_second_says_what_it_waits_for(linear: Path) -> None:
    """The first is held in its factory until the second waits."""
    (linear.parent / "slow_factory.py").write_text(
        "import sys, time\nfrom pathlib import Path\nfrom torch import nn\n\n\ndef make():\n"
        "    print('converting', file=sys.stderr, flush=True)\n"
        "    while not Path('go').exists():\n        time.sleep(0.01)\n    return nn.Linear(3, 2)\n"
    )
    declare(linear.parent, '[models.m]\nsource = "path:c"\nclass = "torch:slow_factory:make"\n')

    def start(output: str) -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-m", "prebake", "bake", "--models", linear, "--output", output],
                                cwd=linear.parent, stderr=subprocess.PIPE, text=True)  # fmt: skip

    with ExitStack() as stack:
        first = stack.enter_context(start("one"))
        assert first.stderr and "converting\n" in iter(first.stderr.readline, "")
        second = stack.enter_context(start("two"))
        waiting = "[1/1] m: waiting for another build, which converts the same model\n"
        assert second.stderr and waiting in iter(second.stderr.readline, "")
        (linear.parent / "go").touch()
        texts = [process.stderr.read() for process in (first, second) if process.stderr]
        assert [process.wait(60) for process in (first, second)] == [0, 0], texts
    assert texts[1].splitlines()[0] == TAKEN
    assert tree(linear.parent / "one" / "m") == tree(linear.parent / "two" / "m")
