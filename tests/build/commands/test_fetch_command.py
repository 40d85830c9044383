"""`prebake fetch` replaces a checkpoint's folder whole or not at all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.baking import LINEAR, declare, names, prebake


@pytest.fixture
def models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("PREBAKE_CACHE", str(tmp_path / "cache"))
    (tmp_path / "project" / "c").mkdir(parents=True)
    (tmp_path / "project" / "c" / "weights").write_bytes(b"x" * 100_000)
    return declare(tmp_path / "project", LINEAR)


def test_a_checkpoint_is_written_and_replaced_and_told_as_json(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = models.parent / "out"
    assert prebake(capsys, "fetch", "--models", models, "--output", output)[:2] == (0, f"{output}/m\n")
    (output / "m" / "old").touch()
    code, out, _ = prebake(capsys, "fetch", "--models", models, "--output", output, "--json")
    assert (code, json.loads(out)) == (0, [{"name": "m", "folder": f"{output}/m"}])
    assert (names(output), names(output / "m")) == (["m"], ["weights"])


def test_too_little_space_is_said_before_anything_is_written(
    models: Path, small_disk: Callable[[Path, str], Path], capsys: pytest.CaptureFixture[str]
) -> None:
    output = small_disk(models.parent / "out", "64k")
    code, _, err = prebake(capsys, "fetch", "--models", models, "--output", output)
    assert code == 1
    assert (
        f"{output}: the checkpoint of m takes 100,000 bytes, and 65,536 are free: free some space, "
        "or name another folder with --output\n"
    ) in err
    assert names(output) == []


def test_a_disk_that_fills_up_meanwhile_leaves_the_previous_folder(
    models: Path, small_disk: Callable[[Path, str], Path], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    output = small_disk(models.parent / "out", "160k")
    assert prebake(capsys, "fetch", "--models", models, "--output", output)[0] == 0
    monkeypatch.setattr("shutil.disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 0, 10**9))
    code, _, err = prebake(capsys, "fetch", "--models", models, "--output", output)
    assert code == 1
    assert (
        f"{output}: cannot write the checkpoint of m: No space left on device: free some space, "
        "or name another folder with --output. The previous folder is unchanged.\n"
    ) in err
    assert names(output) == ["m"]
    assert (output / "m" / "weights").read_bytes() == b"x" * 100_000


def test_what_a_killed_fetch_left_is_removed_and_what_it_moved_away_put_back(
    models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = models.parent / "out"
    (output / ".fetching-m.dead" / "m").mkdir(parents=True)
    (output / ".fetching-other.dead" / "other~").mkdir(parents=True)
    assert prebake(capsys, "fetch", "--models", models, "--output", output)[0] == 0
    assert names(output) == ["m", "other"]


def test_an_output_that_is_a_file_is_refused(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = models.parent / "out"
    output.touch()
    code, _, err = prebake(capsys, "fetch", "--models", models, "--output", output)
    assert code == 2
    assert f"{output}: cannot write the checkpoint of m: File exists: name another folder with --output.\n" in err
