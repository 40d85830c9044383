"""What converting a large checkpoint costs, as a ratio to `cp` of the same bytes, in turn, under a memory limit.

    python benchmarks/checkpoints.py qwen3-4b /data/qwen
    python benchmarks/conversion.py /data/qwen --rounds 5 --memory 4000000000

Both run in a control group of that size (root; version 1 or 2) and are followed by a sync of what they wrote. The page
cache is dropped before each, unless --warm: with it, the source is in memory outside of the group. The conversion is
the whole worker of `prebake bake`: the ordinary load, writing, hashing, the proof. Needs three times the checkpoint's
size on the disk.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path

from limited import GROUPS
from prebake.baked.manifest import Source
from prebake.documents.sizes import format_size
from prebake_build.baking.worker import Job


class MemoryGroup:
    """A control group with a limit on memory, page cache included."""

    def __init__(self, limit: int) -> None:
        self._first = (GROUPS / "memory").is_dir()
        self._folder = (GROUPS / "memory" if self._first else GROUPS) / f"prebake-benchmark-{os.getpid()}"
        self._limit = limit

    def __enter__(self) -> MemoryGroup:
        self._folder.mkdir()
        (self._folder / ("memory.limit_in_bytes" if self._first else "memory.max")).write_text(str(self._limit))
        return self

    def __exit__(self, *_: object) -> None:
        for _try in range(50):
            with suppress(OSError):
                self._folder.rmdir()
                return
            time.sleep(0.1)

    def enter(self) -> None:
        """Put the calling process into the group."""
        (self._folder / "cgroup.procs").write_text(str(os.getpid()))

    def anonymous(self) -> int:
        """Bytes that are neither page cache nor mapped files."""
        lines = (self._folder / "memory.stat").read_text().splitlines()
        found = dict(line.split() for line in lines)
        return int(found["total_rss" if self._first else "anon"])


def run(command: list[str], group: MemoryGroup, text: str = "", environment: dict[str, str] | None = None
        ) -> tuple[float, int]:  # fmt: skip
    """Seconds, and the largest amount of anonymous memory seen, in bytes."""
    largest = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal largest
        while not done.wait(0.05):
            largest = max(largest, group.anonymous())

    watching = threading.Thread(target=watch)
    watching.start()
    began = time.perf_counter()
    try:
        subprocess.run(command, input=text, text=True, check=True, preexec_fn=group.enter, stdout=subprocess.DEVNULL,
                       env={**os.environ, **(environment or {})})  # fmt: skip
    finally:
        spent = time.perf_counter() - began
        done.set()
        watching.join()
    return spent, largest


def synced(place: Path) -> float:
    began = time.perf_counter()
    subprocess.run(["sync", "-f", str(place)], check=True)
    return time.perf_counter() - began


def forget(checkpoint: Path, warm: bool) -> None:
    """Sync everything, and drop the checkpoint from the page cache. The libraries stay in it."""
    os.sync()
    for path in () if warm else checkpoint.iterdir():
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def job(checkpoint: Path, folder: Path, family: str, options: argparse.Namespace) -> str:
    source = Source(uri=f"path:{checkpoint}", revision="sha256:" + "0" * 64)
    made = Job(name="large", family=family, class_=None, dtype=options.dtype, options={}, loading={},
               source=source.to_dict(), recipe="sha256:" + "0" * 64, checkpoint=str(checkpoint),
               folder=str(folder))  # fmt: skip
    return json.dumps(dataclasses.asdict(made))


def one_round(options: argparse.Namespace, scratch: Path) -> dict[str, float]:
    copy, folder = scratch / "copy", scratch / "large"
    found: dict[str, float] = {}
    with MemoryGroup(options.memory) as group:
        forget(options.checkpoint, options.warm)
        found["cp"], _ = run(["cp", "-r", str(options.checkpoint), str(copy)], group)
        found["cp, sync"] = synced(copy)
        shutil.rmtree(copy)
        forget(options.checkpoint, options.warm)
        folder.mkdir()
        command = [sys.executable, "-m", "prebake_build.baking.worker"]
        offline = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
        asked = job(options.checkpoint, folder, "transformers", options)
        found["bake"], found["anonymous"] = run(command, group, asked, offline)
        found["bake, sync"] = synced(folder)
        shutil.rmtree(folder)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--memory", type=int, default=4 * 10**9, help="bytes (default: %(default)s)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", default="source")
    parser.add_argument("--warm", action="store_true", help="leave the checkpoint in the page cache")
    options = parser.parse_args()
    options.checkpoint = options.checkpoint.resolve()
    size = sum(path.stat().st_size for path in options.checkpoint.iterdir())
    rounds = []
    for number in range(options.rounds):
        with tempfile.TemporaryDirectory(dir=options.checkpoint.parent) as scratch:
            rounds.append(one_round(options, Path(scratch)))
        print(number + 1, json.dumps({name: round(value, 2) for name, value in rounds[-1].items()}), flush=True)
    ratios = sorted((one["cp"] + one["cp, sync"]) / (one["bake"] + one["bake, sync"]) for one in rounds)
    print(f"{format_size(size)} under {format_size(options.memory)}, {len(rounds)} rounds in turn")
    print(f"speed of cp, both synced: {statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})")
    print(f"anonymous memory at most: {format_size(int(max(one['anonymous'] for one in rounds)))}")


if __name__ == "__main__":
    main()
