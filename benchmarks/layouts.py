"""What writing an OCI layout costs, as a ratio to `cp -r` of the same files, in turn.

Both are followed by fsync of what they wrote; the ratio is given with and without it.

    python benchmarks/layouts.py models --rounds 5
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from unittest import mock

from prebake.baked.model import find_models
from prebake.documents.sizes import format_size
from prebake_build.files.atomic import sync_tree
from prebake_build.images import pack as packing
from prebake_build.images.pack import Packing, pack


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def one_round(root: Path, scratch: Path) -> tuple[float, float, float, float]:
    """Seconds of copying, of its fsync, of writing the layout, of its fsync."""
    copy, layout = scratch / "copy", scratch / "layout"
    copied = seconds(lambda: subprocess.run(["cp", "-r", str(root), str(copy)], check=True))
    synced = seconds(lambda: sync_tree(copy))
    shutil.rmtree(copy)
    spent: list[float] = []
    models = find_models(root)
    with mock.patch.object(packing, "sync_tree", lambda folder: spent.append(seconds(lambda: sync_tree(folder)))):
        whole = seconds(lambda: pack(models, layout, Packing()))
    shutil.rmtree(layout)
    return copied, synced, whole - spent[0], spent[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("root", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    size = sum(file.size for baked in find_models(options.root) for file in baked.manifest.files)
    with tempfile.TemporaryDirectory(dir=options.root.resolve().parent) as scratch:
        rounds = [one_round(options.root, Path(scratch)) for _ in range(options.rounds + 1)][1:]
    without = sorted(copied / written for copied, _, written, _ in rounds)
    with_sync = sorted((copied + first) / (written + second) for copied, first, written, second in rounds)
    print(f"{format_size(size)}, {len(rounds)} rounds after one that does not count")
    for name, ratios in (("without fsync", without), ("with fsync", with_sync)):
        print(f"speed of cp, {name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
