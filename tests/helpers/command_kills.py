"""Kills `lock`, `fetch`, `bake`, `bake --oci` and `cache prune` at random moments, and looks at what they leave.

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
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import torch

from helpers.forker import Command, Forker
from prebake.baked import layout
from prebake.baked.manifest import Manifest
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.converted import Conversions
from prebake_build.declared.lock import Lock
from prebake_build.files.digest import check_files
from prebake_build.images.oci_layout import Layout

COMMANDS = ("lock", "fetch", "bake", "convert", "take", "oci", "cache")
_EARLIEST = {"bake": 0.4, "convert": 0.4}
"""Part of a command's time after which it is killed at the earliest: before that, the worker of a bake imports."""
_DECLARED = """\
[models.m]
source = "path:c"
class = "torch:helpers.networks:wide"
arguments = { width = 2500 }
"""


class Project:
    """A folder with one model, its lock, a cache, and what the commands write."""

    def __init__(self, folder: Path, forker: Forker) -> None:
        self.folder, self.models, self.lock = folder, folder / "models.toml", folder / "models.lock"
        self.cache, self._forker = folder / "cache", forker
        self.models.write_text(_DECLARED, encoding="utf-8")
        (folder / "c").mkdir()
        torch.save(torch.nn.Linear(2500, 2500).state_dict(), folder / "c" / "weights.pth")
        (folder / "c" / "ballast").write_bytes(os.urandom(1 << 20) * 30)
        self.seconds = {command: self._timed(command) for command in COMMANDS}
        self.locked, self.files = self.lock.read_text(encoding="utf-8"), Lock.read(self.lock)

    def start(self, command: str) -> Command:
        models, cache = ("--models", self.models), ("--cache", self.cache)
        bake, baked = ("bake", *models, *cache, "--output"), self.folder / "bake"
        arguments: dict[str, Sequence[str | Path]] = {
            "lock": ("lock", *models, *cache),
            "fetch": ("fetch", *models, *cache, "--output", self.folder / "fetch"),
            "bake": (*bake, baked, "--force", "--converted-size", "0"),
            "convert": (*bake, baked, "--force"),
            "take": (*bake, self.folder / "take"),
            "oci": (*bake, baked, "--oci", self.folder / "oci"),
            "cache": ("cache", "prune", *cache, "--max-size", "0"),
        }
        return self._forker.start(arguments[command])

    def run(self, command: str) -> None:
        """Run it to its end. Raises AssertionError with its messages if it fails."""
        running = self.start(command)
        assert running.wait() == 0, f"prebake {command}: {running.messages}"

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
        if (self.folder / "oci").exists():
            found = Layout.open(self.folder / "oci")
            found.check_layers(found.images())

    def present(self) -> set[str]:
        models = (self.folder / command / "m" for command in ("fetch", "bake", "take"))
        places = (self.lock, self.folder / "oci", *models)
        return {str(place) for place in places if place.exists()}

    def prepare(self, command: str, numbers: random.Random) -> None:
        """Remove now and then what earlier rounds left; give each command something to work on."""
        if numbers.random() < 0.2:
            for path in (self.folder / "fetch", self.folder / "bake", self.folder / "oci", self.cache):
                shutil.rmtree(path, ignore_errors=True)
            self.lock.unlink(missing_ok=True)
        if command == "cache":
            self.run("fetch")
        elif command == "oci" and not (self.folder / "bake").exists():
            self.run("convert")
        elif command == "take":
            shutil.rmtree(self.folder / "take", ignore_errors=True)
            if not list(Conversions(self.cache).entries()):
                self.run("convert")


def kill(times: int, folder: Path, commands: Sequence[str] = COMMANDS, seed: int = 0) -> Counter[str]:
    """Kill that often, the commands in turn. Returns command → kills that hit it while it ran."""
    numbers, hit = random.Random(seed), Counter[str]()
    with Forker(folder) as forker:
        project = Project(folder, forker)
        for number in range(times):
            command = commands[number % len(commands)]
            project.prepare(command, numbers)
            before = project.present()
            running = project.start(command)
            time.sleep(numbers.uniform(_EARLIEST.get(command, 0), 1.05) * project.seconds[command])
            running.kill()
            hit[command] += running.wait() == -signal.SIGKILL
            project.check()
            assert before <= project.present(), f"prebake {command} lost {before - project.present()}"
        _finish(project)
    return hit


def _finish(project: Project) -> None:
    """Every command runs through, and leaves what it writes and nothing else."""
    shutil.rmtree(project.folder / "take", ignore_errors=True)
    for command in ("lock", "fetch", "bake", "convert", "take", "oci"):
        project.run(command)
    project.check()
    for place in ("fetch", "bake", "take"):
        assert [path.name for path in (project.folder / place).iterdir()] == ["m"]
    assert not [path.name for path in project.folder.iterdir() if path.name.startswith(".")]
    project.run("cache")
    assert not [*(project.cache / "checkpoints").iterdir(), *(project.cache / "converted").iterdir()]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=COMMANDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        print(dict(kill(options.times, Path(temporary), options.commands, options.seed)))
