"""A limited link: a network namespace behind a veth pair whose far end sends at a given rate (needs root).

`tc` shapes what the namespace sends (token bucket), and the kernel's counter of that interface tells how many bytes
came over. Processes started with `serve` run in the namespace; everything else sees them at `address`.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import Event, Thread
from time import perf_counter
from types import TracebackType

HERE, THERE = "10.213.77.1", "10.213.77.2"
"""Addresses of the two ends."""
BUCKET = 0.008
"""Seconds of the rate that may pass at once: more than a tick of the kernel's clock."""


class Link:
    """During the block, a namespace at the other end of a link of `megabits` Mbit/s."""

    address = THERE

    def __init__(self, megabits: int) -> None:
        self._name, self._end = f"prebake-{os.getpid()}", f"pb{os.getpid()}"
        self._megabits = megabits
        self._stack = ExitStack()

    def __enter__(self) -> Link:
        with ExitStack() as stack:
            _ip("netns", "add", self._name)
            stack.callback(_ip, "netns", "del", self._name)
            _ip("link", "add", self._end, "type", "veth", "peer", "name", "far", "netns", self._name)
            _ip("address", "add", f"{HERE}/30", "dev", self._end)
            _ip("link", "set", self._end, "up")
            for words in (["address", "add", f"{THERE}/30", "dev", "far"], ["link", "set", "far", "up"],
                          ["link", "set", "lo", "up"]):  # fmt: skip
                _ip("-n", self._name, *words)
            burst = int(self._megabits * 1e6 / 8 * BUCKET)
            shaped = f"qdisc add dev far root tbf rate {self._megabits}mbit burst {burst} latency 50ms"
            run([*self._inside(), "tc", *shaped.split()])
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def serve(self, command: Sequence[str], log: Path) -> subprocess.Popen[bytes]:
        """Start a process in the namespace; it ends with the link."""
        with log.open("ab") as output:
            process = subprocess.Popen([*self._inside(), *command], stdout=output, stderr=output)
        self._stack.callback(ended, process)
        return process

    def moved(self) -> int:
        """Bytes that came over the link so far, headers included."""
        return int(Path(f"/sys/class/net/{self._end}/statistics/rx_bytes").read_text())

    def _inside(self) -> list[str]:
        return ["ip", "netns", "exec", self._name]


class Watch:
    """During the block, notes when the link was last busy: when the last bytes of a transfer came."""

    PERIOD = 0.02
    BUSY = 200_000
    """Bytes in one period that count as a transfer; less is keep-alive and logs."""

    def __init__(self, link: Link) -> None:
        self._link, self._stop = link, Event()
        self._thread = Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self.began = self.last = perf_counter()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def busy(self) -> float:
        """Seconds from the beginning of the block to the last bytes of a transfer."""
        return self.last - self.began

    def _look(self) -> None:
        before = self._link.moved()
        while not self._stop.wait(self.PERIOD):
            now = self._link.moved()
            if now - before > self.BUSY:
                self.last = perf_counter()
            before = now


def ended(process: subprocess.Popen[bytes]) -> None:
    """End it, and wait until it is gone."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(20)
        return
    process.kill()
    process.wait()


def _ip(*words: str) -> None:
    run(["ip", *words])


def run(command: Sequence[str]) -> None:
    """Run it; SystemExit with its message where it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"{' '.join(command)}: {done.stderr.strip() or done.returncode} (this needs root and iproute2)"
        )
