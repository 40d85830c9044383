"""The whole service, from exec to ready: naive, baked, and `import torch` alone, in turn.

`--cold` has the kernel forget every page before each start (root). `--read-bps 200000000` puts each process behind a
disk of that speed, through a control group of its own (root).
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from prebake_build import processes
from prebake_build.measure import Launcher, Service, measure
from prebake_build.report import machine, versions

DEMO = Path(__file__).parent.parent / "dist" / "demo"
GROUPS = Path("/sys/fs/cgroup")


class Limited:
    """A control group whose reads from the checkout's disk are limited; version 1 or 2, whichever is mounted."""

    def __init__(self, read_bps: int) -> None:
        device = os.stat(DEMO).st_dev  # noqa: PTH116
        disk = Path(f"/sys/dev/block/{os.major(device)}:{os.minor(device)}").resolve()
        if (disk / "partition").exists():
            disk = disk.parent
        number = (disk / "dev").read_text().strip()
        first = GROUPS / "blkio"
        self.group = (first if first.is_dir() else GROUPS) / f"prebake-benchmark-{os.getpid()}"
        self.group.mkdir()
        if first.is_dir():
            (self.group / "blkio.throttle.read_bps_device").write_text(f"{number} {read_bps}")
        else:
            (self.group / "io.max").write_text(f"{number} rbps={read_bps}")

    def join(self) -> None:
        (self.group / "cgroup.procs").write_text(str(os.getpid()))

    def remove(self) -> None:
        with suppress(OSError):
            self.group.rmdir()


class InGroup:
    """A launcher whose processes start inside a control group: this process joins it for the launch."""

    def __init__(self, launcher: Launcher, group: Limited) -> None:
        self.label, self._launcher, self._group = launcher.label, launcher, group

    def launch(self) -> Service:
        here = Path("/proc/self/cgroup").read_text()
        self._group.join()
        try:
            return self._launcher.launch()
        finally:
            for line in here.splitlines():
                _, kinds, path = line.split(":", 2)
                if kinds in ("blkio", ""):
                    ((GROUPS / "blkio" if kinds else GROUPS) / path.lstrip("/") / "cgroup.procs").write_text(
                        str(os.getpid())
                    )


def import_torch(group: Limited | None) -> float:
    """Seconds of a process that imports torch and nothing else."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True, preexec_fn=group.join if group else None)
    return time.perf_counter() - started


def forget_pages() -> None:
    """Have the kernel drop clean pages. Raises OSError where this process may not."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def rounds(number: int, contenders: Sequence[tuple[str, Callable[[], float]]], cold: bool) -> dict[str, list[float]]:
    """Each contender once a round, after one round that does not count."""
    taken: dict[str, list[float]] = {name: [] for name, _ in contenders}
    for turn in range(number + 1):
        for name, once in contenders:
            if cold:
                forget_pages()
            seconds = once()
            if turn:
                taken[name].append(seconds)
                print(f"round {turn}: {name} {seconds:.2f} s", file=sys.stderr)
    return taken


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--read-bps", type=int, metavar="BYTES")
    parser.add_argument("--output", type=Path, default=DEMO.parent / "starts.json")
    options = parser.parse_args()
    group = Limited(options.read_bps) if options.read_bps else None
    launchers: list[Launcher] = [processes.naive(DEMO / "checkpoints"), processes.baked(DEMO / "models")]
    if group:
        launchers = [InGroup(launcher, group) for launcher in launchers]
    contenders = [(x.label, lambda x=x: measure(x).ready) for x in launchers]
    try:
        taken = rounds(options.rounds, [*contenders, ("import torch", lambda: import_torch(group))], options.cold)
    finally:
        if group:
            group.remove()
    state = ("cold" if options.cold else "warm") + (f", {options.read_bps:,} bytes/s" if options.read_bps else "")
    print(f"{state}: seconds to ready, {options.rounds} rounds, median (lowest to highest)")
    for name, values in taken.items():
        ratios = sorted(baked / other for baked, other in zip(taken["baked"], values, strict=True))
        print(f"{name:14}{statistics.median(values):6.2f} ({min(values):.2f} to {max(values):.2f})"
              f"   baked / {name}: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")  # fmt: skip
    document = {"state": state, "versions": versions(), "machine": machine(), "ready": taken}
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
