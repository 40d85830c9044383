"""The two services that the benchmarks start: the reference service with baked models, and the naive one."""

from __future__ import annotations

from pathlib import Path

from image_analyzer.description import ImageAnalyzer
from prebake.watching.presets import Preset
from prebake_build.measure.compare import Ask
from prebake_build.measure.processes import ProcessLauncher

ask = Ask(questions=Preset(ImageAnalyzer(), "image-analyzer"))
"""The first request to both."""


def baked(root: Path, label: str = "baked", **environment: str) -> ProcessLauncher:
    """The service with baked models."""
    return ProcessLauncher(label, ["prebake", "serve", "--root", str(root), "--port", "{port}"], environment)


def naive(checkpoints: Path) -> ProcessLauncher:
    """The service without Prebake, with checkpoints that `prebake fetch` wrote."""
    command = ["python", "-m", "image_analyzer.naive", "--checkpoints", str(checkpoints), "--port", "{port}"]
    return ProcessLauncher("naive", command)
