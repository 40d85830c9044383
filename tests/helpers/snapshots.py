"""Programs that dump themselves, and their restores in new processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from helpers.serving import request
from prebake.snapshot import programs
from prebake_build.measure.processes import free_port

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


@contextmanager
def restoring(native: Path, folder: Path, *arguments: str) -> Iterator[list[str]]:
    """A snapshot of `python -m prebake ARGUMENTS` in `folder`; what restores it. It is removed when the block ends: it
    has hundreds of megabytes."""
    command = [sys.executable, "-m", "prebake"]
    done = subprocess.run(
        [*command, "snapshot", "--output", str(folder), "--", *command, *arguments],
        env={**os.environ, "HF_HUB_OFFLINE": "1", programs.ENV: str(native)},  # `Process` has the bound ones, too
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    try:
        yield [str(native / programs.RESTORER), str(folder)]
    finally:
        shutil.rmtree(folder)


@dataclass
class Served:
    """A service that knows nothing of snapshots: a folder with `app.py`, and the words of its command.

    `{port}` in them is a free port. It is started as `prebake run` starts it.
    """

    folder: Path
    native: Path
    words: tuple[str, ...] = ("uvicorn", "app:app", "--port", "{port}")
    port: int = field(default_factory=free_port)
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.words = tuple(word.format(port=self.port) for word in self.words)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def snapshot(self) -> Path:
        return self.folder / "snapshot"

    @property
    def command(self) -> list[str]:
        """What starts it the ordinary way."""
        return [str(Path(sys.executable).with_name("prebake")), "run", "--", *self.words]

    def write(self, source: str, name: str = "app.py") -> None:
        (self.folder / name).write_text(textwrap.dedent(source), encoding="utf-8")

    def variables(self, more: dict[str, str]) -> dict[str, str]:
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        return {"PATH": path, "HOME": str(self.folder), "PYTHONPATH": str(RUNTIME), "PYTHONDONTWRITEBYTECODE": "1",
                "PREBAKE_ROOT": str(self.folder / "models"), programs.ENV: str(self.native), **self.environment,
                **more}  # fmt: skip

    def dump(self, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run `prebake snapshot` with the command."""
        return subprocess.run(
            [sys.executable, "-m", "prebake", "snapshot", "--output", str(self.snapshot), *options, "--", *self.words],
            cwd=self.folder, env=self.variables(environment), capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    @contextmanager
    def restored(self, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
        """The restored service, once its port is open; killed when the block ends. Its log is in `log`."""
        command = [str(self.native / programs.RESTORER), str(self.snapshot), *self.command]
        with (self.folder / "log").open("wb") as log, subprocess.Popen(
            command, cwd=self.folder, env=self.variables(environment), stdout=log, stderr=log
        ) as process:  # fmt: skip
            try:
                self.until_open(process)
                yield process
            finally:
                process.kill()

    @property
    def log(self) -> str:
        return (self.folder / "log").read_text(encoding="utf-8", errors="replace")

    def ask(self, path: str) -> Any:
        """The JSON of a 200."""
        status, _, body = request(self.url, path)
        assert status == 200, f"{status} {body!r}"
        return json.loads(body)

    def until_open(self, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + 100
        while True:
            assert process.poll() is None and time.monotonic() < deadline, self.log
            try:
                request(self.url, "/")
            except OSError:
                time.sleep(0.02)
            else:
                return
