"""The root of the repository is a workspace: installing it says what to install instead."""

from __future__ import annotations

import subprocess
import sys

import pytest

from helpers import ROOT


@pytest.mark.parametrize("command", [["install", "--no-deps", "."], ["wheel", "--no-deps", "."]])
def test_installing_the_root_is_refused_with_the_way_out(command: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pip", *command, "--no-index", "--quiet"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "This folder is Prebake's workspace, not a package." in done.stderr
    assert "pip install ./runtime ./build" in done.stderr
