"""The worker's process gets no secrets, and however it ends, the old folder or the new one is there."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from helpers.baking import LINEAR, bake, declare, here, names, prebake, tree
from prebake.errors import PrebakeError
from prebake_build.baking import bake as baker

pytestmark = pytest.mark.usefixtures("in_process")


def test_the_worker_gets_no_token_and_no_network_settings(
    linear: Path, monkeypatch: pytest.MonkeyPatch, processes: None
) -> None:
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_ENDPOINT", "EASYOCR_MIRROR", "HTTPS_PROXY", "all_proxy",
                 "AWS_SECRET_ACCESS_KEY", "ANYTHING_ELSE"):  # fmt: skip
        monkeypatch.setenv(name, "secret")
    seen: dict[str, str] = {}

    def run(*_: Any, env: dict[str, str], **__: Any) -> subprocess.CompletedProcess[str]:
        seen.update(env)
        return subprocess.CompletedProcess([], 0, stdout="{}")

    monkeypatch.setattr("subprocess.run", run)
    baker._work(_any_job())
    assert "secret" not in seen.values()
    assert (seen["HF_HUB_OFFLINE"], seen["PATH"]) == ("1", os.environ["PATH"])
    assert seen["HOME"] != os.environ.get("HOME")


def _any_job() -> Any:
    from prebake_build.baking.worker import Job

    return Job(name="m", family="torch", class_=None, dtype="source", options={}, loading={}, source={}, recipe="",
               checkpoint="", folder="")  # fmt: skip


@pytest.mark.parametrize(
    ("code", "out", "message"),
    [
        (-9, "", "models.m: the worker ended with signal 9 (killed, perhaps out of memory); see its "
                 "messages above"),
        (-11, "", "models.m: the worker ended with signal 11; see its messages above"),
        (3, "", "models.m: the worker ended with exit code 3; see its messages above"),
        (0, "", "models.m: the worker ended with exit code 0; see its messages above"),
        (0, '{"error": "Unheard", "message": "what"}', "what"),
    ],
)  # fmt: skip
def test_a_worker_that_dies_is_told(
    monkeypatch: pytest.MonkeyPatch, processes: None, code: int, out: str, message: str
) -> None:
    done = subprocess.CompletedProcess([], code, stdout=out)
    monkeypatch.setattr("subprocess.run", lambda *_, **__: done)
    with pytest.raises(PrebakeError) as caught:
        baker._work(_any_job())
    assert str(caught.value) == message


SLOW = """
import os, signal, sys, time
import torch
def linear():
    print("in the factory", file=sys.stderr, flush=True)
    time.sleep(float(os.environ["PAUSE"]))
    return torch.nn.Linear(3, 2)
"""


def killed_bake(models: Path, pause: str, when: Any) -> None:
    """A bake whose whole process group is killed once `when()` holds."""
    environment = {**os.environ, "PYTHONPATH": str(models.parent), "PAUSE": pause,
                   "PREBAKE_WORKER_ENV": "PAUSE"}  # fmt: skip
    with (models.parent / "messages").open("w") as messages:
        process = subprocess.Popen(
            [sys.executable, "-m", "prebake", "bake", "--models", str(models), "--force",
             "--output", str(models.parent / "out")],
            env=environment, start_new_session=True, stdout=subprocess.DEVNULL, stderr=messages,
        )  # fmt: skip
    while process.poll() is None and not when():
        time.sleep(0.001)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("old", [False, True], ids=["first bake", "second bake"])
@pytest.mark.parametrize("moment", ["work folder", "factory", "weights", "manifest"])
def test_killed_at_any_moment_the_output_is_the_old_model_or_the_new_one(
    linear: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, old: bool, moment: str,
    processes: None,
) -> None:  # fmt: skip
    (linear.parent / "slow.py").write_text(SLOW)
    declare(linear.parent, LINEAR.replace("helpers.networks", "slow"))
    monkeypatch.setenv("PYTHONPATH", str(linear.parent))
    monkeypatch.setenv("PAUSE", "0")
    monkeypatch.setenv("PREBAKE_WORKER_ENV", "PAUSE")
    output = linear.parent / "out"
    before = None
    if old:
        here(monkeypatch)
        monkeypatch.syspath_prepend(str(linear.parent))
        monkeypatch.delitem(sys.modules, "slow", raising=False)
        assert bake(capsys, linear)[0] == 0
        before = tree(output / "m")
    found = {
        "work folder": lambda: any(output.glob(".baking-m.*")),
        "factory": lambda: "in the factory" in (linear.parent / "messages").read_text(),
        "weights": lambda: any(output.glob(".baking-m.*/m/model.safetensors")),
        "manifest": lambda: any(output.glob(".baking-m.*/m/manifest.json")),
    }[moment]
    killed_bake(linear, "30" if moment == "factory" else "0", found)
    if (output / "m").exists():
        baked = tree(output / "m")
        assert old or moment == "manifest"
        assert before in (None, baked)  # the second bake gives the same bytes: both are whole
    assert prebake(capsys, "bake", "--models", linear, "--output", output, "m")[0] == 0
    assert names(output) == ["m"]
    assert prebake(capsys, "verify", output)[0] == 0


def test_leftovers_are_cleared_though_the_model_is_up_to_date(linear: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bake(capsys, linear)
    (linear.parent / "out" / ".baking-m.x" / "m").mkdir(parents=True)
    assert bake(capsys, linear)[0] == 0
    assert names(linear.parent / "out") == ["m"]
