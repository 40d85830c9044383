"""The lowest memory limits of containers (`docker run --memory`) at which a service is ready, and at which it answers.

For each image, found by halving between a limit that is enough and one that is not; printed with what happens just
below: exit code, whether the kernel killed a process for memory, and the end of the log. The page cache counts against
the limit, but the kernel takes it back: near the lowest limit, pages of files are read again and again, so a container
that is not ready, or has not answered, after `--seconds` counts as failed too.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from launchers import ask
from prebake.errors import PrebakeError
from prebake.watching.readiness import AtAnyPath, wait
from prebake_build.images.engine import open_engine
from prebake_build.measure.containers import ContainerLauncher
from prebake_build.measure.report import machine

LOWEST = 6
"""MB: the engine takes no lower limit."""


@dataclass(frozen=True)
class Outcome:
    """What a container did under a limit."""

    ready: bool
    answer: bytes | None
    exit_code: int | None
    """None if it runs."""
    killed_for_memory: bool
    log: str

    def __str__(self) -> str:
        state = "runs" if self.exit_code is None else f"exit code {self.exit_code}"
        return f"{state}, killed for memory: {'yes' if self.killed_for_memory else 'no'}; {self.log}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="*", default=["prebake-snapshot:latest", "prebake:latest"], metavar="IMAGE")
    parser.add_argument("--highest", type=int, default=2048, metavar="MB", help="a limit that is enough")
    parser.add_argument("--exact", type=int, default=4, metavar="MB", help="stop at a difference of so much")
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--output", type=Path, default=Path("dist/memory-limits.json"))
    options = parser.parse_args()
    client, found = open_engine(), {}
    for image in options.images:
        for what in ("ready", "answered"):
            lowest, below = search(client, image, what, options)
            found[f"{image}, {what}"] = {"megabytes": lowest, "below": below and str(below)}
            print(f"{image}: {what} with {lowest} MB; below: {below or 'not tried'}", flush=True)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text(json.dumps({"machine": machine(), "limits": found}, indent=2) + "\n", encoding="utf-8")


def search(client: Any, image: str, what: str, options: argparse.Namespace) -> tuple[int, Outcome | None]:
    """The lowest limit in MB, and what happened under the highest one that was too low."""
    enough, too_low, below = options.highest, LOWEST - 1, None
    expected = under(client, image, enough, what, options.seconds)
    if not expected.ready or (what == "answered" and not expected.answer):
        raise PrebakeError(f"{image}: {enough} MB are not enough: {expected}")
    while enough - too_low > options.exact and enough > LOWEST:
        limit = max(LOWEST, (enough + too_low) // 2)
        outcome = under(client, image, limit, what, options.seconds)
        good = outcome.ready and outcome.answer == expected.answer
        print(f"{image}, {limit} MB: {'enough' if good else outcome}", file=sys.stderr, flush=True)
        if good:
            enough = limit
        else:
            too_low, below = limit, outcome
    return enough, below


def under(client: Any, image: str, limit: int, what: str, seconds: float) -> Outcome:
    """Start a container under a limit of so many MB, and ask it once if `what` is `answered`."""
    memory = f"{limit}m"
    launcher = ContainerLauncher(client, image, image, mem_limit=memory, memswap_limit=memory)
    ready, answer = False, None
    try:
        with launcher.launch() as service:
            waited = wait(service, AtAnyPath(), seconds)
            ready = waited.told is not None
            if waited.told is not None and what == "answered":
                try:
                    answer = ask.questions(waited.told)[0].ask(waited.told.url, seconds).body
                except (OSError, PrebakeError):
                    answer = None
            state = ended(client, service.container.id, 5.0 if what == "answered" and answer is None else 0.0)
            code = None if state["Running"] else state["ExitCode"]
            return Outcome(ready, answer, code, bool(state["OOMKilled"]), " | ".join(service.log().splitlines()[-2:]))
    except PrebakeError as error:  # it ended at once
        return Outcome(ready, answer, None, False, str(error))


def ended(client: Any, container: str, seconds: float) -> dict[str, Any]:
    """The container's state, once it has ended, or after so many seconds."""
    deadline = time.monotonic() + seconds
    while True:
        state: dict[str, Any] = client.api.inspect_container(container)["State"]
        if not state["Running"] or time.monotonic() > deadline:
            return state
        time.sleep(0.1)


if __name__ == "__main__":
    main()
