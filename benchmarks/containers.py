"""Cold starts of containers: drops the page cache before each start, which needs root.

`--read-bps 200000000` limits each container's disk reads to that speed (`docker run --device-read-bps`), except for
warm starts. Images: `make image baseline`, with MODELS_FILE=models.dummy.toml for full-size dummy models.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launchers import ask
from limited import disk_of
from prebake.startup import readahead
from prebake_build.images.engine import open_engine
from prebake_build.measure.compare import measure
from prebake_build.measure.containers import ContainerLauncher
from prebake_build.measure.report import machine
from starts import forget_pages, ratios, spread

NAIVE, BAKED, AHEAD, WARM = "naive", "baked, no list", "baked", "baked, warm"
SNAPSHOT = "snapshot"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--image", default="prebake:latest")
    parser.add_argument("--baseline", help="image of the naive service, such as prebake-baseline:latest")
    parser.add_argument("--snapshot", action="append", default=[], metavar="IMAGE",
                        help="image of a snapshot, such as prebake-snapshot:latest; repeatable")  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--read-bps", type=int, metavar="BYTES")
    parser.add_argument("--output", type=Path, default=Path("dist/containers.json"))
    options = parser.parse_args()
    launchers = contenders(options.image, options.baseline, options.snapshot, options.read_bps)
    taken: dict[str, dict[str, list[float]]] = {name: {"ready": [], "first answer": []} for name in launchers}
    for turn in range(options.rounds + 1):
        for name, launcher in launchers.items():
            if name != WARM:
                forget_pages()
            sample = measure(launcher, ask)
            answered = sample.first_answer or 0.0
            print(f"round {turn}: {name} {sample.ready:.2f} s, {answered:.2f} s", file=sys.stderr)
            if turn:  # the first is a warm-up
                taken[name]["ready"].append(sample.ready)
                taken[name]["first answer"].append(answered)
    limit = f" behind {options.read_bps:,} bytes/s" if options.read_bps else ""
    print(f"cold containers{limit}: seconds, {options.rounds} rounds in turn, median (lowest to highest)")
    best = next((name for name in taken if name.startswith(SNAPSHOT)), AHEAD)
    for name, of in taken.items():
        told = [f"{what} {spread(of[what]):24} {best} / it {ratios(taken[best][what], of[what])}" for what in of]
        print(f"{name:16}" + "   ".join(told))
    images = [options.image, options.baseline, *options.snapshot]
    document = {"images": images, "read_bps": options.read_bps, "machine": machine(), "seconds": taken}
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


def contenders(
    image: str, baseline: str | None, snapshots: Sequence[str], read_bps: int | None
) -> dict[str, ContainerLauncher]:
    """The launchers to compare."""
    client = open_engine()
    slow: dict[str, Any] = {}
    if read_bps:
        disk = f"/dev/{disk_of(Path(client.info()['DockerRootDir'])).name}"
        slow = {"device_read_bps": [{"Path": disk, "Rate": read_bps}]}
    launchers = {NAIVE: ContainerLauncher(client, baseline, NAIVE, **slow)} if baseline else {}
    for each in snapshots:
        name = SNAPSHOT if len(snapshots) == 1 else f"{SNAPSHOT} {each}"
        launchers[name] = ContainerLauncher(client, each, name, **slow)
    return launchers | {
        BAKED: ContainerLauncher(client, image, BAKED, environment={readahead.ENV: ""}, **slow),
        AHEAD: ContainerLauncher(client, image, AHEAD, **slow),
        WARM: ContainerLauncher(client, image, WARM),
    }


if __name__ == "__main__":
    main()
