"""Kills processes that write OCI layouts, at random moments, and looks at what they leave.

Run from the folder `tests`: `python -m helpers.kills --times 200`. A child writes two sets of models in turn to one
place. It gets SIGKILL after a random time; then the place holds the whole layout of one set, or nothing if there was
none yet. At the end a run that is not killed must clear everything else.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from helpers.baked_folders import baked_folder
from prebake.baked.model import BakedModel
from prebake_build.images.oci_layout import Layout
from prebake_build.images.pack import Packing, pack

SIZES = (2_000_000, 500_000, 1_000)
"""Floats in each model's tensor: writing takes long enough to be hit."""


@dataclass
class Tally:
    """How the kills ended."""

    first: int = 0
    second: int = 0
    absent: int = 0
    leftovers: int = 0
    """Kills that left a work folder for the next run to remove."""


def models(root: Path, fill: bytes) -> list[BakedModel]:
    return [baked_folder(root, f"m{number}", {"w": [size]}, fill=fill) for number, size in enumerate(SIZES)]


def kill(times: int, folder: Path, seed: int = 0) -> Tally:
    """Kill that often. Raises AssertionError, or the reader's error, for a layout that is not whole."""
    sets = [models(folder / "first", b"\1"), models(folder / "second", b"\2")]
    whole = {pack(models, folder / "reference", Packing()).digest: number for number, models in enumerate(sets)}
    place, numbers, tally = folder / "place" / "oci", random.Random(seed), Tally()
    duration = _duration(sets[0], folder)
    for _ in range(times):
        if numbers.random() < 0.2:
            shutil.rmtree(place, ignore_errors=True)
        child = subprocess.Popen([sys.executable, "-m", "helpers.kills", "--write", str(folder)],
                                 stdout=subprocess.PIPE, cwd=Path(__file__).parents[1])  # fmt: skip
        assert child.stdout
        child.stdout.read(1)  # it has imported everything and begins to write
        time.sleep(numbers.uniform(0, 4 * duration))
        child.send_signal(signal.SIGKILL)
        child.communicate()
        tally.leftovers += len(list(place.parent.glob(".*")))
        if not place.exists():
            tally.absent += 1
            continue
        found = Layout.open(place)
        found.check_layers(found.images())
        if whole[found.index.manifests[0].digest]:
            tally.second += 1
        else:
            tally.first += 1
    pack(sets[0], place, Packing())
    assert [path.name for path in place.parent.iterdir()] == ["oci"]
    return tally


def _duration(models: list[BakedModel], folder: Path) -> float:
    """Seconds of one write, so that the kills hit all of it."""
    begin = time.monotonic()
    pack(models, folder / "timed", Packing())
    return time.monotonic() - begin


def _write(folder: Path) -> None:
    sets = [[BakedModel.open(path) for path in sorted((folder / name).iterdir())] for name in ("first", "second")]
    print(".", end="", flush=True)
    while True:
        for models in sets:
            pack(models, folder / "place" / "oci", Packing())


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--write", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.write:
        _write(options.write)
    with tempfile.TemporaryDirectory() as temporary:
        print(kill(options.times, Path(temporary), options.seed))
