"""A restored process has as many threads as it may use processors, whatever the dumped one had."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Collection
from pathlib import Path

import pytest

from helpers.snapshots import Program
from prebake.snapshot.processors import processors

MULTIPLYING = """
    import json, os, threading
    import cv2, numpy, torch
    from prebake import snapshot

    one = torch.ones(600, 600)
    def product():
        return (one + 0) @ one  # a bare product as a thread's first operation does not ask torch for its threads
    product()  # OpenMP's threads exist, and the dump ends them
    numpy.ones((600, 600)) @ numpy.ones((600, 600))
    before = torch.get_num_threads()
    snapshot.here()
    at_restore = len(os.listdir("/proc/self/task"))
    product()
    of_main = len(os.listdir("/proc/self/task"))
    told = []
    def multiply():
        product()
        told.append((torch.get_num_threads(), len(os.listdir("/proc/self/task")) - of_main))
    thread = threading.Thread(target=multiply)
    thread.start()
    thread.join()
    print(json.dumps({"before": before, "torch": torch.get_num_threads(), "cv2": cv2.getNumThreads(),
                      "started": of_main - at_restore, "restored": at_restore, "elsewhere": told,
                      "sum": product().sum().item()}))
"""

ALLOWED = sorted(os.sched_getaffinity(0))


def bound(program: Program, command: list[str], to: Collection[int], **environment: str) -> str:
    """Run a command on these processors alone; what it writes."""
    done = subprocess.run(
        command, env=program.variables(environment), preexec_fn=lambda: os.sched_setaffinity(0, to),
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "the snapshot is not used" not in done.stderr
    return done.stdout


def restored(program: Program, to: Collection[int], **environment: str) -> dict[str, object]:
    told: dict[str, object] = json.loads(
        bound(program, [*program.restorer, *program.command()], to, **environment).splitlines()[-1]
    )
    assert told.pop("sum") == 600.0**3
    return told


def dumped(program: Program, on: Collection[int]) -> None:
    program.write(MULTIPLYING)
    command = [program.command()[0], "-m", "prebake", "snapshot", "--output", str(program.snapshot), "--"]
    bound(program, [*command, *program.command()], on)


@pytest.mark.skipif(len(ALLOWED) < 2, reason="one processor")
@pytest.mark.parametrize(("at_dump", "at_restore"), [(2, 1), (1, 2)], ids=["fewer", "more"])
def test_threads_follow_the_affinity(program: Program, at_dump: int, at_restore: int) -> None:
    dumped(program, ALLOWED[:at_dump])
    assert restored(program, ALLOWED[:at_restore]) == {
        "before": at_dump,
        "torch": at_restore,
        "cv2": at_restore,
        "restored": at_restore,  # cv2's
        "started": at_restore - 1,  # OpenMP's, beside the main thread
        "elsewhere": [[at_restore, at_restore]],  # a thread has a pool of its own
    }


def test_a_declared_number_is_used_also_above_the_processors(program: Program) -> None:
    dumped(program, ALLOWED[:1])
    told = restored(program, ALLOWED[:1], OMP_NUM_THREADS="3")
    assert (told["before"], told["torch"], told["cv2"], told["elsewhere"]) == (1, 3, 3, [[3, 3]])


@pytest.mark.parametrize(
    ("quota", "expected"), [(50_000, 1), (100_000, 1), (None, len(ALLOWED))], ids=["half of one", "one", "none"]
)
@pytest.mark.parametrize("version", [1, 2])
def test_a_quota_counts_as_the_processors_that_it_amounts_to(
    version: int, quota: int | None, expected: int, tmp_path: Path
) -> None:
    if version == 2:
        place, line = tmp_path / "sys/fs/cgroup/service", "0::/service"
        files = {"cpu.max": f"{'max' if quota is None else quota} 100000"}
    else:
        place, line = tmp_path / "sys/fs/cgroup/cpu,cpuacct/service", "4:cpu,cpuacct:/service"
        files = {"cpu.cfs_quota_us": f"{-1 if quota is None else quota}", "cpu.cfs_period_us": "100000"}
    place.mkdir(parents=True)
    if version == 1:
        (tmp_path / "sys/fs/cgroup/cpu").symlink_to("cpu,cpuacct")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(f"{line}\n", encoding="utf-8")
    for name, text in files.items():
        (place / name).write_text(f"{text}\n", encoding="utf-8")
    assert processors(tmp_path) == expected
