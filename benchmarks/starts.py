"""Measures the time to ready of the whole service, naive and baked, and of `import torch` alone, in turn.

`--cold` drops the page cache before each start (needs root), and adds the baked service with readahead from an earlier
recording. `--read-bps 200000000` limits each process's disk reads to that speed with a control group (needs root), and
adds a warm start and the number of bytes that each start read.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import launchers
from limited import Limited
from prebake.startup import readahead
from prebake.startup.readahead import parse
from prebake_build.measure.compare import Launcher, measure
from prebake_build.measure.report import machine, versions

DEMO = Path(__file__).parent.parent / "dist" / "demo"
BAKED, AHEAD, WARM = "baked", "baked, read ahead", "baked, warm"


def import_torch() -> float:
    """Duration of a process that only imports torch, in seconds."""
    started = time.perf_counter()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return time.perf_counter() - started


def record(models: Path, output: Path) -> int:
    """Record what a start reads, and return the bytes that it needs before it is ready."""
    subprocess.run([sys.executable, "-m", "prebake", "check", "--root", models, "--record-reads", output],
                   check=True, stdout=subprocess.DEVNULL)  # fmt: skip
    needed: dict[str, int] = {}
    parts = parse(output.read_text(encoding="utf-8").splitlines())
    for path, ranges in (entry for entries, _ in parts for entry in entries):
        # ranges of a file listed a second time are those of the first answer
        needed.setdefault(path, sum(length for _, length in ranges) if ranges else Path(path).stat().st_size)
    return sum(needed.values())


def forget_pages() -> None:
    """Make the kernel drop clean pages. Raises OSError if this process lacks the permission."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--read-bps", type=int, metavar="BYTES")
    parser.add_argument("--models", type=Path, default=DEMO / "models", metavar="DIR")
    parser.add_argument("--output", type=Path, default=DEMO.parent / "starts.json")
    options = parser.parse_args()
    starts = Starts(options.models, cold=options.cold, read_bps=options.read_bps)
    taken = starts.take(options.rounds)
    state = ("cold" if options.cold else "warm") + (f", {options.read_bps:,} bytes/s" if options.read_bps else "")
    print(f"{state}: seconds to ready, {options.rounds} rounds, median (lowest to highest)")
    print("\n".join(starts.lines(taken)))
    document = {"state": state, "versions": versions(), "machine": machine(), "ready": taken,
                "first_answer": starts.answers, "needed": starts.needed, "read": starts.read}  # fmt: skip
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


class Starts:
    """The contenders, and their measurements besides the time to ready."""

    def __init__(self, models: Path, *, cold: bool, read_bps: int | None) -> None:
        self._cold, self._read_bps = cold, read_bps
        self.needed = 0
        """Bytes that a start reads before it is ready."""
        contenders: list[Launcher] = [launchers.naive(DEMO / "checkpoints"), launchers.baked(models, BAKED)]
        if cold:
            listed = DEMO / "readahead"
            self.needed = record(models, listed)
            contenders.append(launchers.baked(models, AHEAD, **{readahead.ENV: str(listed)}))
        if read_bps:
            contenders.append(launchers.baked(models, WARM))
        self._contenders: dict[str, Callable[[], float]] = {x.label: partial(self._ready, x) for x in contenders}
        self._contenders["import torch"] = import_torch
        self.answers: dict[str, list[float]] = {launcher.label: [] for launcher in contenders}
        """Seconds to the first answer."""
        self.read: dict[str, list[int]] = {name: [] for name in self._contenders}
        """Bytes read from the disk until the first answer, if reads are limited."""

    def _ready(self, launcher: Launcher) -> float:
        sample = measure(launcher, launchers.ask)
        self.answers[launcher.label].append(sample.first_answer or 0.0)
        return sample.ready

    def take(self, rounds: int) -> dict[str, list[float]]:
        """Run each contender once per round, after a warm-up round; returns the seconds to ready."""
        taken: dict[str, list[float]] = {name: [] for name in self._contenders}
        for turn in range(rounds + 1):
            for name, once in self._contenders.items():
                if self._cold and name != WARM:
                    forget_pages()
                with Limited(DEMO, self._read_bps) if self._read_bps and name != WARM else nullcontext() as group:
                    taken[name].append(once())
                    self.read[name].append(group.read() if group else 0)
                print(f"round {turn}: {name} {taken[name][-1]:.2f} s", file=sys.stderr)
        uncounted: list[list[Any]] = [*taken.values(), *self.answers.values(), *self.read.values()]
        for values in uncounted:
            del values[0]
        return taken

    def lines(self, taken: dict[str, list[float]]) -> Iterator[str]:
        """The lines of the table."""
        best = AHEAD if AHEAD in taken else BAKED
        for name, values in taken.items():
            line = f"{name:18}{spread(values)}   {best} / it: {ratios(taken[best], values)}"
            if name in self.answers:
                line += f"   first answer {spread(self.answers[name])}"
            if any(self.read[name]):
                line += f"   read {statistics.median(self.read[name]) / 1e6:,.0f} MB in all"
            yield line
        if self._read_bps and self.needed:
            disk = self.needed / self._read_bps
            floors = [max(disk, warm) for warm in taken[WARM]]
            yield (f"a start needs {self.needed / 1e6:,.0f} MB, {disk:.2f} s of this disk; {best} / the longer of that "
                   f"and a warm start: {ratios(taken[best], floors)}")  # fmt: skip


def ratios(some: list[float], others: list[float]) -> str:
    """Median and range of the pairs' ratios."""
    return spread([a / b for a, b in zip(some, others, strict=True)])


def spread(values: list[float]) -> str:
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


if __name__ == "__main__":
    main()
