"""A node that has never seen an image: a second Docker engine, whose stores are empty each time it starts (needs root).

It has its own data, containerd, socket and bridge, and no firewall rules: containers use the host's network. (With
`"bridge": "none"` it would remove docker0, which the other engine needs.)
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from link import ended, run
from prebake.errors import PrebakeError
from starts import forget_pages

TICKS = os.sysconf("SC_CLK_TCK")


class Node:
    """During the block, an engine with empty stores below `folder`, which may pull from `registry` over HTTP."""

    def __init__(self, folder: Path, registry: str) -> None:
        self._folder, self._registry = folder, registry
        self._bridge = f"pbn{os.getpid()}"

    def __enter__(self) -> Node:
        import docker

        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(parents=True)
        # A full page cache makes unpacking take three times as long, depending on what ran before.
        forget_pages()
        run(["ip", "link", "add", self._bridge, "type", "bridge"])
        run(["ip", "address", "add", "10.213.78.1/24", "dev", self._bridge])
        settings = {"features": {"containerd-snapshotter": True}, "insecure-registries": [self._registry],
                    "bridge": self._bridge, "iptables": False, "ip6tables": False}  # fmt: skip
        (self._folder / "daemon.json").write_text(json.dumps(settings))
        socket = f"unix://{self._folder}/docker.sock"
        command = ["dockerd", f"--config-file={self._folder}/daemon.json", f"--data-root={self._folder}/data",
                   f"--exec-root={self._folder}/exec", f"--pidfile={self._folder}/pid", f"--host={socket}"]  # fmt: skip
        with (self._folder / "log").open("wb") as log:
            self._daemon = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **_programs()})
        for _ in range(300):
            try:
                self.engine: Any = docker.DockerClient(base_url=socket, version="auto", timeout=600)
                return self
            except docker.errors.DockerException:
                time.sleep(0.1)
        self._end()
        raise PrebakeError(f"the second engine did not start; its log ends:\n{self._log()}")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.engine.close()
        self._end()

    def processor_seconds(self) -> float:
        """Of the engine and its containerd, the programs that they ran to decompress included."""
        return sum(_processor_seconds(pid) for pid in (self._daemon.pid, *_children(self._daemon.pid)))

    def pull(self, image: str) -> None:
        """Pull it. Raises PrebakeError with the engine's message."""
        name, _, tag = image.rpartition(":")
        for event in self.engine.api.pull(name, tag=tag, stream=True, decode=True):
            if "error" in event:
                raise PrebakeError(f"{image}: {event['error']}")

    def _end(self) -> None:
        ended(self._daemon)
        subprocess.run(["ip", "link", "del", self._bridge], capture_output=True)
        mounts = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed([mount for mount in mounts if mount.startswith(f"{self._folder}/")]):
            subprocess.run(["umount", place], capture_output=True)  # the network namespace that the engine keeps
        shutil.rmtree(self._folder, ignore_errors=True)

    def _log(self) -> str:
        return (self._folder / "log").read_text(errors="replace")[-2000:] if self._folder.is_dir() else ""


def _programs() -> dict[str, str]:
    """Where this repository's .ci/docker-engine puts dockerd and containerd, which are looked for on PATH."""
    home = os.environ.get("ENGINE_HOME", "/opt/docker-engine")
    return {"PATH": f"{home}/bin:{home}/sbin:{os.environ['PATH']}"}


def _children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children")
    tasks = [*found.parent.parent.glob("*/children")]
    return [int(child) for task in tasks for child in task.read_text().split()]


def _processor_seconds(pid: int) -> float:
    """User and system time of a process and of its children that ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(int(ticks) for ticks in fields[11:15]) / TICKS
