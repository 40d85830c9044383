"""Kills `prebake lock`, `fetch`, `bake` and `cache prune` at random moments, and looks at what they leave.

`convert` is a bake that keeps its model in the build cache, `take` one that copies it from there.

Run from the folder `tests`: `python -m helpers.command_kills --times 200`. Each round runs one command and sends it
SIGKILL after a random time. Then every document, entry and folder is whole or absent, and what a command replaces is
not lost. At the end every command runs through, and nothing else is left.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from prebake.baked import layout
from prebake.baked.manifest import Manifest
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.converted import Conversions
from prebake_build.declared.lock import Lock
from prebake_build.files.digest import check_files

COMMANDS = ("lock", "fetch", "bake", "convert", "take", "cache")
_TESTS = Path(__file__).parents[1]
_DECLARED = """\
[models.m]
source = "path:c"
class = "torch:helpers.networks:wide"
arguments = { width = 2500 }
"""


class Project:
    """A folder with one model, its lock, a cache, and what the commands write."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.models, self.lock = folder, folder / "models.toml", folder / "models.lock"
        self.cache = folder / "cache"
        self.models.write_text(_DECLARED, encoding="utf-8")
        (folder / "c").mkdir()
        torch.save(torch.nn.Linear(2500, 2500).state_dict(), folder / "c" / "weights.pth")
        (folder / "c" / "ballast").write_bytes(os.urandom(1 << 20) * 30)
        self.seconds = {command: self._timed(command) for command in COMMANDS}
        self.locked, self.files = self.lock.read_text(encoding="utf-8"), Lock.read(self.lock)

    def start(self, command: str) -> subprocess.Popen[bytes]:
        models, cache = ("--models", self.models), ("--cache", self.cache)
        arguments: dict[str, Sequence[str | Path]] = {
            "lock": ("lock", *models, *cache),
            "fetch": ("fetch", *models, *cache, "--output", self.folder / "fetch"),
            "bake": ("bake", *models, *cache, "--output", self.folder / "bake", "--force", "--converted-size", "0"),
            "convert": ("bake", *models, *cache, "--output", self.folder / "bake", "--force"),
            "take": ("bake", *models, *cache, "--output", self.folder / "take"),
            "cache": ("cache", "prune", *cache, "--max-size", "0"),
        }
        path = os.pathsep.join([str(_TESTS), *filter(None, sys.path)])
        return subprocess.Popen([sys.executable, "-m", "prebake", *arguments[command]], cwd=self.folder,
                                env={**os.environ, "PYTHONPATH": path},
                                stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)  # fmt: skip

    def run(self, command: str) -> None:
        """Run it to its end. Raises AssertionError with its messages if it fails."""
        child = self.start(command)
        messages = child.communicate()[1].decode()
        assert child.returncode == 0, f"prebake {command}: {messages}"

    def _timed(self, command: str) -> float:
        begin = time.monotonic()
        self.run(command)
        return time.monotonic() - begin

    def check(self) -> None:
        """Raises AssertionError, or the reader's error, for anything that is half there."""
        if self.lock.exists():
            assert self.lock.read_text(encoding="utf-8") == self.locked
        for entry in (*Cache(self.cache).entries(), *Conversions(self.cache).entries()):
            entry.check(trust=False)
        for folder in (path for path in (self.folder / "fetch").glob("[!.]*")):
            resolved = self.files.models["m"].resolved
            assert resolved
            check_files(folder, resolved.files)
        baked = [*(self.folder / "bake").glob("[!.]*"), *(self.folder / "take").glob("[!.]*")]
        for folder in (path for path in baked if path.is_dir()):
            check_files(folder, Manifest.read(folder).files, allow=[layout.MANIFEST])

    def present(self) -> set[str]:
        places = (self.lock, *(self.folder / command / "m" for command in ("fetch", "bake", "take")))
        return {str(place) for place in places if place.exists()}


def kill(times: int, folder: Path, commands: Sequence[str] = COMMANDS, seed: int = 0) -> Counter[str]:
    """Kill that often, the commands in turn. Returns command → kills that hit it while it ran."""
    project, numbers, hit = Project(folder), random.Random(seed), Counter[str]()
    for number in range(times):
        command = commands[number % len(commands)]
        if numbers.random() < 0.2:
            for path in (folder / "fetch", folder / "bake", project.cache):
                shutil.rmtree(path, ignore_errors=True)
            project.lock.unlink(missing_ok=True)
        if command == "take":
            shutil.rmtree(folder / "take", ignore_errors=True)
        before = project.present()
        child = project.start(command)
        time.sleep(numbers.uniform(0.3, 1.05) * project.seconds[command])
        child.send_signal(signal.SIGKILL)
        child.communicate()
        hit[command] += child.returncode == -signal.SIGKILL
        project.check()
        assert before <= project.present(), f"prebake {command} lost {before - project.present()}"
    shutil.rmtree(folder / "take", ignore_errors=True)
    for command in ("lock", "fetch", "bake", "convert", "take"):
        project.run(command)
    project.check()
    for name in ("fetch", "bake", "take"):
        assert [path.name for path in (folder / name).iterdir()] == ["m"]
    project.run("cache")
    assert not [*(project.cache / "checkpoints").iterdir(), *(project.cache / "converted").iterdir()]
    return hit


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(dict(kill(options.times, Path(temporary), options.commands, options.seed)))
