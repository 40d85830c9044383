"""Snapshots of the reference service, as plain processes, against the mapped tier. Needs gcc, and root for cold starts.

Makes two snapshots first, of the service as it is and after each model has answered once, and compares, in turn:

- cold starts, the page cache dropped before each, behind `--read-bps` (0: no limit); warm starts with `--warm`;
- with `--memory`, the memory of one service and of `--services` on one host;
- with `--often`, 20 restores one after another and 8 at once: whether all answer.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import launchers
from limited import Limited
from prebake.errors import PrebakeError
from prebake.snapshot import programs
from prebake.snapshot.folder import IMAGE, TABLE
from prebake.startup import readahead
from prebake.watching.readiness import AtAnyPath, unready, wait
from prebake_build.measure.compare import Launcher, Sample, measure
from prebake_build.measure.processes import ProcessLauncher
from prebake_build.measure.report import machine, versions
from sharing import together
from starts import DEMO, forget_pages, ratios, record, spread

MAPPED, AHEAD = "mapped", "mapped, read ahead"
SNAPSHOT, UNLISTED, WARMED = "snapshot", "snapshot, no list", "snapshot, warmed"
ENVIRONMENT = {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
"""What `ProcessLauncher` sets: a snapshot is bound to some of it."""
TURNS, AT_ONCE = 20, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--read-bps", type=int, default=200_000_000, metavar="BYTES")
    parser.add_argument("--warm", action="store_true", help="warm starts instead of cold ones")
    parser.add_argument("--memory", action="store_true", help="memory instead of starts")
    parser.add_argument("--services", type=int, default=4)
    parser.add_argument("--often", action="store_true", help="20 restores in turn and 8 at once instead of starts")
    parser.add_argument("--models", type=Path, default=DEMO / "models", metavar="DIR")
    parser.add_argument("--folder", type=Path, default=DEMO / "snapshots", help="where the snapshots go")
    parser.add_argument("--output", type=Path, default=DEMO.parent / "snapshots.json")
    options = parser.parse_args()
    made = Snapshots(options.models.absolute(), options.folder.absolute())
    if options.memory:
        result = memory(made, options.services)
    elif options.often:
        result = often(made.launcher(SNAPSHOT))
    else:
        result = starts(made.contenders(cold=not options.warm), options)
    document = {"versions": versions(), "machine": machine(), "snapshots": made.sizes(), "result": result}
    options.output.write_text(json.dumps(document, indent=2) + "\n", encoding="utf-8")


class Snapshots:
    """The snapshots, made in a folder of their own."""

    def __init__(self, models: Path, folder: Path) -> None:
        self._models, self._folder = models, folder
        self._serve = [sys.executable, "-m", "prebake", "serve", "--root", str(models), "--host", "127.0.0.1", "--port"]
        shutil.rmtree(folder, ignore_errors=True)
        programs.build(folder / "programs")
        for name, variables in ((SNAPSHOT, {}), (WARMED, {"PREBAKE_SNAPSHOT_WARM": "1"})):
            self._prebake(variables, "--output", name)
            if name == SNAPSHOT:
                shutil.copytree(self._place(SNAPSHOT), self._place(UNLISTED))
            self._prebake({}, "--rehearse", name)

    def _place(self, name: str) -> Path:
        return self._folder / name.replace(", ", "-").replace(" ", "-")

    def _prebake(self, variables: dict[str, str], option: str, name: str) -> None:
        command = [sys.executable, "-m", "prebake", "snapshot", option, str(self._place(name)), "--"]
        environment = {**os.environ, **ENVIRONMENT, **variables, programs.ENV: str(self._folder / "programs")}
        subprocess.run([*command, *self._serve, "8765"], env=environment, check=True)

    def launcher(self, name: str) -> ProcessLauncher:
        """The service restored from this snapshot."""
        restorer = str(self._folder / "programs" / programs.RESTORER)
        return ProcessLauncher(name, [restorer, str(self._place(name)), *self._serve, "{port}"])

    def contenders(self, *, cold: bool) -> list[Launcher]:
        """The launchers to compare; the snapshot is first."""
        found: list[Launcher] = [self.launcher(SNAPSHOT), launchers.baked(self._models, MAPPED)]
        if cold:
            listed = self._folder / "readahead"
            record(self._models, listed)
            found.append(launchers.baked(self._models, AHEAD, **{readahead.ENV: str(listed)}))
        return [*found, self.launcher(UNLISTED), self.launcher(WARMED)]

    def sizes(self) -> dict[str, dict[str, int]]:
        return {name: {file: (self._place(name) / file).stat().st_size for file in (IMAGE, TABLE)}
                for name in (SNAPSHOT, WARMED)}  # fmt: skip


def starts(contenders: Sequence[Launcher], options: argparse.Namespace) -> dict[str, Any]:
    """Start each in turn, after a warm-up round, and print the table."""
    limit = options.read_bps if not options.warm else 0
    taken: dict[str, list[Sample]] = {launcher.label: [] for launcher in contenders}
    read: dict[str, list[int]] = {launcher.label: [] for launcher in contenders}
    for turn in range(options.rounds + 1):
        for launcher in contenders:
            if not options.warm:
                forget_pages()
            with Limited(options.folder, limit) if limit else nullcontext() as group:
                sample = measure(launcher, launchers.ask)
                bytes_read = group.read() if group else 0
            answered = sample.first_answer or 0.0
            print(f"round {turn}: {launcher.label} {sample.ready:.3f} s, {answered:.2f} s", file=sys.stderr)
            if turn:
                taken[launcher.label].append(sample)
                read[launcher.label].append(bytes_read)
    state = "warm" if options.warm else "cold" + (f", {limit:,} bytes/s" if limit else "")
    print(f"{state}: seconds, {options.rounds} rounds in turn, median (lowest to highest)")
    seconds = {
        name: {"ready": [each.ready for each in samples],
               "first answer": [each.first_answer or 0.0 for each in samples]}
        for name, samples in taken.items()
    }  # fmt: skip
    print("\n".join(lines(seconds, read)))
    return {"state": state, "seconds": seconds, "read": read}


def lines(seconds: dict[str, dict[str, list[float]]], read: dict[str, list[int]]) -> Iterator[str]:
    """The lines of the table."""
    for name, of in seconds.items():
        told = [f"{what} {spread(values):24} {SNAPSHOT} / it {ratios(seconds[SNAPSHOT][what], values):22}"
                for what, values in of.items()]  # fmt: skip
        disk = f"read {statistics.median(read[name]) / 1e6:,.0f} MB" if any(read[name]) else ""
        yield f"{name:20}{'  '.join(told)} {disk}".rstrip()


def memory(made: Snapshots, number: int) -> dict[str, Any]:
    """One service and several, when ready and after an answer."""
    result: dict[str, Any] = {}
    for launcher in (launchers.baked(made._models, MAPPED), made.launcher(SNAPSHOT), made.launcher(WARMED)):
        for count in (1, number):
            result[f"{launcher.label}, {count}"] = found = together(launcher, count)
            for state, sums in found.items():
                cells = "".join(f"{kind}: {size / 1e6:>8,.0f}   " for kind, size in sums.items())
                print(f"{launcher.label:18}{count} services, {state:9}{cells}", flush=True)
    for count in (1, number):
        for state in ("ready", "answered"):
            one, other = (result[f"{name}, {count}"][state] for name in (SNAPSHOT, MAPPED))
            told = ", ".join(f"{kind} {one[kind] / max(1, other[kind]):.2f}" for kind in one)
            print(f"{SNAPSHOT} / {MAPPED}, {count} services, {state}: {told}")
    return result


def often(launcher: ProcessLauncher) -> dict[str, Any]:
    """Restores in turn and at once. Raises PrebakeError if one does not answer."""
    in_turn = [once(launcher) for _ in range(TURNS)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        at_once = [*pool.map(lambda _: once(launcher), range(AT_ONCE))]
    for title, all_of in (("in turn", in_turn), ("at once", at_once)):
        tiers = ", ".join({tier for _, tier, _ in all_of})
        ready = spread([seconds for seconds, *_ in all_of])
        print(f"{len(all_of)} {title}: all answered, tier {tiers}; ready {ready} s")
    print(f"{len({body for *_, body in [*in_turn, *at_once]})} different answers")
    return {"in turn": [seconds for seconds, *_ in in_turn], "at once": [seconds for seconds, *_ in at_once]}


def once(launcher: ProcessLauncher) -> tuple[float, str, bytes]:
    """Seconds to ready, the tier, and the answer of one start."""
    with launcher.launch() as service:
        waited = wait(service, AtAnyPath(), 120.0)
        if waited.told is None:
            raise PrebakeError(unready(service, waited, 120.0))
        (question,) = launchers.ask.questions(waited.told)
        answer = question.ask(waited.told.url, 300.0).body
        with urllib.request.urlopen(f"{waited.told.url}/startup") as startup:
            document = json.load(startup)
    return waited.seconds, (document.get("snapshot") or {}).get("tier", "none"), answer


if __name__ == "__main__":
    main()
