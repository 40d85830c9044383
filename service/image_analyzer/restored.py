"""The reference service as a snapshot: everything loaded before the port opens, and dumped there.

The restored process goes on with the arguments of its container. Those that decide what was loaded must be the same;
otherwise the service starts the ordinary way.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from importlib import import_module
from typing import TYPE_CHECKING

from prebake import snapshot
from prebake.errors import SnapshotError

if TYPE_CHECKING:
    from prebake import Models

logger = logging.getLogger(__name__)

LOADED = ("root", "allow", "verify", "lazy")
"""Options that decide what was loaded."""
WARM = "PREBAKE_SNAPSHOT_WARM"
"""`1`: each model answers once before the dump."""


def load_and_dump(models: Models, options: argparse.Namespace, parser: argparse.ArgumentParser) -> argparse.Namespace:
    """Load all models and dump the process; returns in the restored process, with the options of its own arguments."""
    given = options

    def take_arguments() -> None:
        nonlocal given
        try:
            given = parser.parse_args(sys.argv[2:])
        except SystemExit:  # the ordinary start prints the error again, and ends with its code
            raise SnapshotError("the arguments can't be used") from None
        for name in LOADED:
            if getattr(given, name) != getattr(options, name):
                raise SnapshotError(f"--{name} is not what the snapshot was taken with")

    snapshot.after_restore(take_arguments)
    for module in ("image_analyzer.analyzer", "image_analyzer.uploads", "image_analyzer.metrics", "waitress.wasyncore"):
        import_module(module)
    if not options.lazy:
        models.start()
        models.wait()
        if os.environ.get(WARM) == "1":
            _warm_up(models)
    snapshot.here(watched=[baked.folder / file.path for baked in models.baked for file in baked.manifest.files])
    return given


def _warm_up(models: Models) -> None:
    from image_analyzer.analyzer import Analyzer
    from image_analyzer.example import example

    Analyzer(models).analyze(example(), None)
