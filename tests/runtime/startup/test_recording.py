"""Recording with pagewise happens in a process of its own, and where that comes to no good, once more without."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.baking import prebake
from prebake.startup import recording
from prebake.startup.readahead import HEADER
from prebake.startup.recorder import Recorder

CRASH = "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"
FAIL = "raise RuntimeError('the C library is another')"
HANG = "import time; time.sleep(3600)"


def check(models: Path, listed: Path, folder: Path, pagewise: str, **environment: str) -> Any:
    """`prebake check --pagewise`, where that code runs as libraries begin to be cut."""
    (folder / "sitecustomize.py").write_text(
        "import prebake.startup.pagewise\n"
        f"def enter(self):\n    print('cutting', flush=True); {pagewise}; return self\n"
        "prebake.startup.pagewise.Pagewise.__enter__ = enter\n"
        "prebake.startup.pagewise.Pagewise.__exit__ = lambda self, *error: False\n"
        "import os, prebake.startup.recording\n"
        "prebake.startup.recording.LONGEST = float(os.environ.get('TEST_LONGEST', 600))\n"
    )
    path = os.pathsep.join([str(folder), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "prebake", "check", "--root", models, "--record-reads", listed, "--pagewise"],
        env=os.environ | {"PYTHONPATH": path} | environment, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip


def test_what_a_process_that_ends_well_prints_and_writes_is_kept(tagger: Path, tmp_path: Path) -> None:
    done = check(tagger, tmp_path / "list", tmp_path, "pass")
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("cutting"), done.stdout.count("tagger: mapped")) == (1, 1)
    assert "without --pagewise" not in done.stderr
    assert (tmp_path / "list").read_text().startswith(HEADER)


@pytest.mark.parametrize(
    ("pagewise", "why"),
    [
        (CRASH, "was ended by signal 11 (Segmentation fault)"),
        (FAIL, "ended with exit code 1 (RuntimeError: the C library is another)"),
        ("os._exit(0)", "wrote no list"),
        (HANG, "did not end within 20 s"),
    ],
)
def test_a_process_that_comes_to_no_good_is_forgotten_and_the_start_recorded_without(
    tagger: Path, tmp_path: Path, pagewise: str, why: str
) -> None:
    done = check(tagger, tmp_path / "list", tmp_path, pagewise, TEST_LONGEST="20" if pagewise == HANG else "600")
    assert done.returncode == 0, done.stderr
    assert (done.stdout.count("cutting"), done.stdout.count("tagger: mapped")) == (0, 1)
    assert done.stderr.splitlines()[0] == (
        f"{tmp_path}/list: recorded without --pagewise, because a start with it {why}. The list is longer."
    )
    assert (tmp_path / "list").read_text().startswith(HEADER)


def test_a_start_that_fails_either_way_fails_as_it_does_without(tmp_path: Path) -> None:
    done = check(tmp_path / "nowhere", tmp_path / "list", tmp_path, "pass")
    plain = subprocess.run(
        [sys.executable, "-m", "prebake", "check", "--root", tmp_path / "nowhere"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == plain.returncode != 0
    assert done.stderr.splitlines()[-1] == plain.stderr.splitlines()[-1]
    assert not (tmp_path / "list").exists()


def test_a_start_over_its_budget_is_recorded_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ways = []

    def run(command: list[str], env: dict[str, str], **options: Any) -> subprocess.CompletedProcess[bytes]:
        ways.append(env[recording.ENV])
        (tmp_path / "list").write_text(HEADER)
        options["stdout"].write(b"a report\n")
        options["stderr"].write(b"prebake: over budget\n")
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.setattr(subprocess, "run", run)
    arguments = ("check", "--ready", "1", "--record-reads", tmp_path / "list", "--pagewise")
    assert prebake(capsys, *arguments) == (1, "a report\n", "prebake: over budget\n")
    assert ways == ["pagewise"]


def test_an_old_list_is_not_taken_for_a_new_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "list").write_text("old")
    codes = iter([0, -9])
    monkeypatch.setattr(subprocess, "run", lambda command, **_: subprocess.CompletedProcess(command, next(codes)))
    with caplog.at_level(logging.WARNING):
        assert recording.record(["check"], tmp_path / "list") == 137
    assert "a start with it wrote no list" in caplog.text
    assert not (tmp_path / "list").exists()


def test_pagewise_without_a_list_is_a_mistake(capsys: pytest.CaptureFixture[str]) -> None:
    assert prebake(capsys, "check", "--pagewise") == (
        2, "", "prebake: error: --pagewise: nothing is recorded; add --record-reads FILE, or leave --pagewise out\n"
    )  # fmt: skip


def test_a_recorder_leaves_the_c_library_alone_unless_it_is_told() -> None:
    assert Recorder()._pagewise is None
    assert Recorder(pagewise=True)._pagewise is not None


def test_an_ordinary_recording_does_not_even_import_it(tagger: Path, tmp_path: Path) -> None:
    done = check_plainly(tagger, tmp_path / "list")
    assert done.returncode == 0, done.stderr
    assert not any("/pagewise" in line for line in (tmp_path / "list").read_text().splitlines())


def check_plainly(models: Path, listed: Path) -> Any:
    path = os.pathsep.join([str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return subprocess.run(
        [sys.executable, "-m", "prebake", "check", "--root", models, "--record-reads", listed],
        env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
