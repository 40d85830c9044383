"""Programs that dump themselves, and their restores in new processes."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from prebake.snapshot import programs

RUNTIME = Path(__file__).parents[2] / "runtime"


def skip_where_there_are_none() -> None:
    """Skip the calling test or module on machines that have no snapshots, or no compiler for the two programs."""
    if why := programs.unsupported():
        pytest.skip(f"no snapshots here: {why}")
    if not any(map(shutil.which, ("gcc", "cc", "clang"))):
        pytest.skip("no C compiler here")


def build_programs(folder: Path) -> Path:
    """The folder, with the restorer and the library in it."""
    programs.build(folder)
    return folder


@dataclass
class Program:
    """A Python program that calls `snapshot.here()`, in a folder of its own."""

    folder: Path
    native: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshot"

    def write(self, source: str) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder / "program.py").write_text(textwrap.dedent(source), encoding="utf-8")

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-X", "faulthandler", str(self.folder / "program.py"), *arguments]

    def dump(
        self, *arguments: str, options: tuple[str, ...] = (), environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `prebake snapshot` with the program."""
        command = [sys.executable, "-m", "prebake", "snapshot", "--output", str(self.snapshot), *options, "--"]
        return self._run([*command, *self.command(*arguments)], environment or {})

    def rehearse(self, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
        """Run `prebake snapshot --rehearse` with the program."""
        command = [sys.executable, "-m", "prebake", "snapshot", "--rehearse", str(self.snapshot), *options, "--"]
        return self._run([*command, *self.command(*arguments)], {})

    def restore(
        self, *arguments: str, environment: dict[str, str] | None = None, command: list[str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run `prebake-restore` with the snapshot, the program being what is started where it is refused."""
        return self._run([*self.restorer, *(command or self.command(*arguments))], environment or {})

    @property
    def restorer(self) -> list[str]:
        return [str(self.native / programs.RESTORER), str(self.snapshot)]

    def variables(self, more: dict[str, str] | None = None) -> dict[str, str]:
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LD_LIBRARY_PATH") if name in os.environ}
        return {**kept, "PYTHONPATH": str(RUNTIME), "PYTHONDONTWRITEBYTECODE": "1", programs.ENV: str(self.native),
                **self.environment, **(more or {})}  # fmt: skip

    def _run(self, command: list[str], environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command, env=self.variables(environment), capture_output=True, text=True, timeout=120, check=False
        )
