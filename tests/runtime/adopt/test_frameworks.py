"""The first framework's import prepares the process, once; the collector is calm until the first load."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from helpers.adopted import python


@pytest.fixture
def path(tmp_path: Path) -> str:
    """`PYTHONPATH` with a framework of two lines in place of torch, and one that imports it."""
    (tmp_path / "torch.py").write_text("import gc\nthreshold = gc.get_threshold()[0]\n")
    (tmp_path / "timm.py").write_text("import torch\n")
    return os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])


def told(path: str, code: str, **environment: str) -> Any:
    """What the program prints as JSON."""
    return json.loads(python(f"import gc, json, os, sys\n{code}", PYTHONPATH=path, PREBAKE_MEMO="", **environment))


def test_the_collector_is_calm_until_the_first_load(path: str) -> None:
    code = (
        "before = gc.get_threshold()\nimport torch\nfrom prebake.adopt import frameworks\nframeworks.settle()\n"
        "print(json.dumps([torch.threshold, list(before) == list(gc.get_threshold()), gc.isenabled()]))"
    )
    assert told(path, code) == [500_000, True, True]


def test_thresholds_of_the_application_stay(path: str) -> None:
    code = (
        "import torch\nfrom prebake.adopt import frameworks\ngc.set_threshold(5, 6, 7)\ngc.disable()\n"
        "frameworks.settle()\nprint(json.dumps([gc.get_threshold(), gc.isenabled()]))"
    )
    assert told(path, code) == [[5, 6, 7], False]
    off = "gc.set_threshold(0)\nimport torch\nprint(json.dumps(torch.threshold))"
    assert told(path, off) == 0


def test_imports_are_on_the_timeline(path: str) -> None:
    code = (
        "import timm\nfrom prebake.telemetry import timeline\n"
        "print(json.dumps([[span.name, span.depth] for span in timeline.process.spans]))"
    )
    assert told(path, code) == [["import torch", 1], ["import timm", 0]]


def test_imports_are_deferred_and_threads_sleep(path: str) -> None:
    code = (
        "import torch\nfrom prebake.startup import deferred\n"
        "print(json.dumps([deferred._finder in sys.meta_path, os.environ['OMP_WAIT_POLICY']]))"
    )
    assert told(path, code) == [True, "passive"]


def test_no_thread_is_left(path: str) -> None:
    code = "import torch, threading\nprint(json.dumps([thread.name for thread in threading.enumerate()]))"
    assert told(path, code) == ["MainThread"]


def test_one_process_of_a_service_reads_ahead(path: str, tmp_path: Path) -> None:
    (tmp_path / "list").write_text("prebake readahead 1\n")
    code = (
        "import subprocess\nimport torch\nhere = os.environ.get('PREBAKE_READAHEAD')\n"
        "child = 'import torch, os; print(os.environ.get(\"PREBAKE_READAHEAD\"))'\n"
        "below = subprocess.run([sys.executable, '-c', child], capture_output=True, text=True).stdout.strip()\n"
        "print(json.dumps([here, below]))"
    )
    listed = str(tmp_path / "list")
    assert told(path, code, PREBAKE_READAHEAD=listed) == [listed, "None"]
