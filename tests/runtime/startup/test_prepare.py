"""What an image computes once: the memo and the link to the probe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from prebake.telemetry import probe

pytest.importorskip("transformers")


def test_it_writes_the_memo_and_links_the_probe_again_and_again(tmp_path: Path) -> None:
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "-B", "-m", "prebake.startup.prepare", str(tmp_path)],
            capture_output=True, text=True, env={**os.environ, "PYTHONWARNINGS": "ignore"},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "probe.py").readlink() == Path(probe.__file__)
        assert len(list((tmp_path / "memo").iterdir())) == 1
