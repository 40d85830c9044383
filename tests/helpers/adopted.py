"""Processes below `prebake run`, and models that hooks serve."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from helpers.baking import job

REPO = "acme/tiny"
COMMIT = "1" * 40
RUN = [sys.executable, "-m", "prebake", "run"]


def clean(**changes: str) -> dict[str, str]:
    """This process's environment without what would change a service's; names in `changes` replace it."""
    left = {name: value for name, value in os.environ.items() if not name.startswith(("PREBAKE", "HF_"))}
    return left | changes


def run(*command: object, options: Sequence[object] = (), **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command by `prebake run`, and wait for it."""
    words = [*RUN, *map(str, options), "--", *map(str, command)]
    environment.setdefault("PREBAKE_ROOT", "/nonexistent")
    return subprocess.run(words, env=clean(**environment), capture_output=True, text=True, check=False, timeout=120)


def python(code: str, *arguments: str, options: Sequence[object] = (), **environment: str) -> str:
    """Standard output of a Python program by `prebake run`, which must succeed."""
    done = run(sys.executable, "-c", code, *arguments, options=options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def bake_from_hub(checkpoint: Path, folder: Path, repo: str = REPO, commit: str = COMMIT, **changes: Any) -> Path:
    """Bake a checkpoint as if it came from the hub; returns the baked folder."""
    from prebake_build.baking.worker import run as bake

    source = {"uri": f"hf:{repo}", "revision": f"commit:{commit}", "licence": None}
    bake(job(checkpoint, folder, source=source, **changes))
    return folder


def download(*args: Any, **kwargs: Any) -> str:
    """As an application calls it: looked up when called, so hooked."""
    import huggingface_hub

    function: Any = huggingface_hub.file_download.hf_hub_download
    return str(function(*args, **kwargs))


def snapshot(*args: Any, **kwargs: Any) -> str:
    return str(sys.modules["huggingface_hub._snapshot_download"].snapshot_download(*args, **kwargs))
