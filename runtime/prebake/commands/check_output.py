"""What both forms of `prebake check` write, and how they end."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from prebake.baked.model import BakedModel
from prebake.errors import ConfigError
from prebake.telemetry import report
from prebake.telemetry.budget import Start
from prebake.telemetry.timeline import Timeline


def write_reports(options: argparse.Namespace, start: Start, spans: Timeline, told: Mapping[str, Any]) -> None:
    """Write the files of `--trace`, `--html` and `--save`. Raises ConfigError."""
    if options.trace:
        write(options.trace, json.dumps(report.chrome_trace(spans)))
    if options.html:
        from prebake.telemetry.drawing import startup_page

        write(options.html, startup_page(told))
    if options.save:
        write(options.save, start.text)


def write(path: Path, text: str) -> None:
    """Write a file. Raises ConfigError."""
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot write it: {error.strerror}") from error


def drifted(models: Iterable[BakedModel]) -> list[str]:
    """One line for each package whose version here is another than the one that a model was baked with.

    Imports torch only if there is any.
    """
    found = []
    for baked in models:
        if any(_installed(package) != wanted for package, wanted in baked.manifest.requires.items()):
            from prebake.tiers.drift import drift

            found += drift(baked)
    return found


def _installed(package: str) -> str | None:
    try:
        return version(package).partition("+")[0]
    except PackageNotFoundError:
        return None


def conclude(over_budget: Sequence[str], strict: Sequence[str], *, warn_only: bool) -> int:
    """Print what was found; the exit code. `--warn-only` is about the budget alone."""
    for finding in over_budget:
        print(f"prebake: over budget: {finding}", file=sys.stderr)
    for finding in strict:
        print(f"prebake: {finding}", file=sys.stderr)
    return 1 if strict or (over_budget and not warn_only) else 0
