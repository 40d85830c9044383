"""Kills restored processes at random moments of their restore, and looks at how they go on.

Run from the folder `tests`: `python -m helpers.restore_kills --times 200` for a program, and with `--image NAME` for
containers of an image with a snapshot (as root, on the engine's machine), each sealed and asked once.

A process that is killed before it has told its supervisor that it runs starts the ordinary way, with the reason. Later
the container ends, by exit code 137. Nothing else happens.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from helpers.image_builds import ask, wait_ready
from helpers.snapshots import Program, build_programs

RESTORER = "prebake-restore"
KILLED = "the restored process ended before it was ready, by signal 9"
LOGGED = f"prebake: the snapshot is not used: {KILLED}\n"
AFTERWARDS = "prebake: the restored service was killed by signal 9, as where the memory limit is reached\n"
SPAN = 0.04
"""Seconds in which the kills come: a restore takes 10 to 30 ms."""
TELLING = """
    from prebake import snapshot
    from prebake.telemetry import restored
    known = bytearray(b"known" * 2_000_000)
    snapshot.here()
    print(restored.document()["reason"], known.count(b"known"))
"""


def kill(program: Program, times: int, seed: int = 0) -> Counter[str]:
    """How so many restores of the program went on. Raises AssertionError for what must not happen."""
    program.write(TELLING)
    dump = program.dump()
    assert dump.returncode == 0, dump.stderr
    numbers, tally = random.Random(seed), Counter[str]()
    for number in range(times):
        after = numbers.uniform(0, SPAN) if number % 4 else 0  # on a busy machine, all others may come too late
        with subprocess.Popen(
            [*program.restorer, *program.command()], env=program.variables(), text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as process:  # fmt: skip
            _kill_child(process.pid, after)
            ended = (*process.communicate(timeout=60), process.returncode)
        tally[_ENDS[ended]] += 1
    return tally


_ENDS = {
    (f"{KILLED} 2000000\n", LOGGED, 0): "ordinary",
    ("", AFTERWARDS, 137): "killed when it ran",
    ("None 2000000\n", AFTERWARDS, 137): "killed when it ran",
    ("None 2000000\n", "", 0): "had ended",
}


def _kill_child(pid: int, after: float, until: threading.Event | None = None) -> None:
    """Kill the process's child, so many seconds after it exists."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    while not (until and until.is_set()):
        try:
            numbers = children.read_text(encoding="ascii").split()
        except OSError:  # the process has ended
            return
        if numbers:
            time.sleep(after)
            with suppress(ProcessLookupError):
                os.kill(int(numbers[0]), signal.SIGKILL)
            return


@dataclass
class Killer:
    """Kills the restored process of a container that is about to start; a thread, since starting one takes longer."""

    container: str
    after: float
    over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Killer:
        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self.over.is_set():
            if pid := self._restorer():
                _kill_child(pid, self.after, self.over)
                return

    def _restorer(self) -> int | None:
        """The process number of the container's first process, once that is the restorer."""
        for group in _groups(self.container):
            with suppress(OSError, ValueError):
                first = int((group / "cgroup.procs").read_text(encoding="ascii").split(maxsplit=1)[0])
                if Path(f"/proc/{first}/comm").read_text(encoding="utf-8").strip() == RESTORER:
                    return first
        return None


def _groups(container: str) -> list[Path]:
    """Where the engine may have the container's control group: version 1, version 2, and that with systemd."""
    root = Path("/sys/fs/cgroup")
    return [root / "pids/docker" / container, root / "docker" / container,
            root / f"system.slice/docker-{container}.scope"]  # fmt: skip


def kill_containers(client: Any, image: str, times: int, path: str, seed: int = 0) -> Counter[str]:
    """How so many sealed containers of the image went on, each asked for `path`. Raises AssertionError otherwise."""
    numbers, tally, expected = random.Random(seed), Counter[str](), None
    for _ in range(times):
        container = client.containers.create(image, network_mode="none", read_only=True, user="12345",
                                             cap_drop=["ALL"], security_opt=["no-new-privileges"])  # fmt: skip
        try:
            with Killer(container.id, numbers.uniform(0, SPAN)) as killer:
                container.start()
                killer.over.wait(2 * SPAN)
            end = _end(container)
            tally[end] += 1
            if end == "ordinary":
                wait_ready(container)
                answer = ask(container, path)
                expected = expected or answer
                assert answer == expected
        finally:
            container.remove(force=True)
    return tally


def _end(container: Any) -> str:
    """What the kill did, once it is known."""
    for _ in range(200):
        container.reload()
        log = container.logs().decode()
        if LOGGED in log:
            return "ordinary"
        if container.status == "exited":
            assert container.attrs["State"]["ExitCode"] == 137 and log.endswith(AFTERWARDS), log
            return "killed when it ran"
        time.sleep(0.05)
    raise AssertionError(f"nothing was killed:\n{log}")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--times", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image", help="an image with a snapshot of the reference service")
    parser.add_argument("--path", default="/ocr", help="what its containers are asked for")
    options = parser.parse_args()
    if options.image:
        from prebake_build.images.engine import open_engine

        print(dict(kill_containers(open_engine(), options.image, options.times, options.path, options.seed)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        print(dict(kill(Program(folder / "program", build_programs(folder / "native")), options.times, options.seed)))


if __name__ == "__main__":
    main()
