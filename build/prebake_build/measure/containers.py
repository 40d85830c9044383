"""Starts services in containers, to compare images with `prebake_build.measure.compare`.

The containers have the label `prebake.measure=1`, so leftovers of a killed process can be found:
`docker ps --all --filter label=prebake.measure=1`.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.errors import ConfigError, PrebakeError
from prebake.watching.proc import Memory, memory_of

logger = logging.getLogger(__name__)

LABEL = {"prebake.measure": "1"}
"""The label of the containers of `ContainerLauncher`."""


HARDENED: Mapping[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}
"""Default options of containers: hardened, as in production."""


class ContainerLauncher:
    """Starts a service's image, with its port published on 127.0.0.1.

    `command` replaces the image's own arguments. `port` is the service's port in the container; by default the only one
    that the image exposes, else 8000. `sealed` starts it with the options `HARDENED`; None tries them, and leaves them
    for the rest if the service does not become ready under them. `options` are further arguments of the SDK's
    `containers.create`, such as `mem_limit="2g"`, `nano_cpus=2_000_000_000`, `device_read_bps=[…]` or `user=12345`;
    they override `HARDENED`.
    """

    def __init__(
        self, client: Any, image: str, label: str, *, command: Sequence[str] | None = None, port: int | None = None,
        sealed: bool | None = True, **options: Any,
    ) -> None:  # fmt: skip
        self.label = label
        self.sealed = sealed
        self._client = client
        self._image = image
        self._command = list(command) if command is not None else None
        self._port = port
        self._options = options

    def unseal(self) -> bool:
        """Leave `HARDENED` for the next launches, if that was not decided. Returns whether it changes anything."""
        if self.sealed is not None:
            return False
        self.sealed = False
        logger.warning(
            "%s: does not become ready in a sealed container (read-only root, no capabilities, no new privileges): "
            "started without these from now on", self.label,
        )  # fmt: skip
        return True

    def launch(self) -> ContainerService:
        """Create and start a container; returns as soon as the engine has started it.

        Raises PrebakeError if the engine does not have the image or refuses the options, or if the container ends
        immediately; then the container is removed.
        """
        import docker

        options = {**(HARDENED if self.sealed is not False else {}), **self._options}
        try:
            port = f"{self._port or self._exposed()}/tcp"
            container = self._client.containers.create(
                self._image, self._command, labels=LABEL, ports={port: ("127.0.0.1", None)}, **options
            )
        except docker.errors.ImageNotFound as error:
            raise PrebakeError(f"{self._image}: there is no such image here: build it, or pull it") from error
        except docker.errors.APIError as error:
            raise PrebakeError(f"{self._image}: the engine cannot create a container: {error.explanation}") from error
        except TypeError as error:
            raise ConfigError(f"{self._image}: the Docker SDK knows no such option of a container: {error}") from error
        service = ContainerService(container)
        try:
            container.start()
            container.reload()
            # there are no ports if the container has already ended, or has no network
            published = (container.attrs["NetworkSettings"]["Ports"] or {}).get(port) or []
            if published:
                service.url = f"http://127.0.0.1:{published[0]['HostPort']}"
        except docker.errors.APIError as error:
            service.stop()
            raise PrebakeError(f"{self._image}: the container does not start: {error.explanation}") from error
        except BaseException:
            service.stop()
            raise
        return service

    def _exposed(self) -> int:
        """The only port that the image exposes, else 8000."""
        exposed = self._client.images.get(self._image).attrs["Config"].get("ExposedPorts") or {}
        ports = [name.partition("/")[0] for name in exposed if name.endswith("/tcp")]
        return int(ports[0]) if len(ports) == 1 else layout.DEFAULT_PORT


class ContainerService:
    """A launched container."""

    def __init__(self, container: Any) -> None:
        self.url = ""
        self.container = container
        """The SDK's container object."""
        self._removed_log: str | None = None

    def alive(self) -> bool:
        """Whether it is still running."""
        if self._removed_log is not None:
            return False
        self.container.reload()
        return bool(self.container.status in ("created", "running"))

    def exit_code(self) -> int | None:
        """The exit code of its command; None while it runs."""
        return None if self.alive() else int(self.container.attrs["State"]["ExitCode"])

    def addresses(self) -> list[str]:
        """Where it listens, as seen from here; empty if no port is published."""
        return [self.url] if self.url else []

    def memory(self) -> Memory | None:
        """From the kernel's counters of its processes; if the engine is on another machine, from the engine."""
        import docker

        try:
            top = self.container.top()
            pid_column = top["Titles"].index("PID")
            pids = [int(row[pid_column]) for row in top["Processes"]]
            if pids and all(self._has(pid) for pid in pids):
                return memory_of(pids)
            return _counted(self.container.stats(stream=False, one_shot=True)["memory_stats"])
        except (docker.errors.APIError, KeyError, ValueError):
            return None

    def _has(self, pid: int) -> bool:
        """Whether this process id, as the engine knows it, is that of a process of the container here."""
        try:
            return str(self.container.id) in Path(f"/proc/{pid}/cgroup").read_text(encoding="utf-8")
        except OSError:
            return False

    def log(self) -> str:
        """Its standard output and error, also after `stop`."""
        if self._removed_log is not None:
            return self._removed_log
        return str(self.container.logs().decode("utf-8", "replace"))

    def stop(self) -> None:
        """Kill and remove it. Safe to call again."""
        import docker

        if self._removed_log is not None:
            return
        self._removed_log = ""
        with suppress(docker.errors.APIError):
            self._removed_log = self.container.logs().decode("utf-8", "replace")
        with suppress(docker.errors.NotFound):
            self.container.remove(force=True, v=True)

    def __enter__(self) -> ContainerService:
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


def _counted(stats: Mapping[str, Any]) -> Memory | None:
    """The control group's counters: version 1 has a peak, version 2 only what is used now."""
    of = stats.get("stats") or {}
    anonymous = of.get("total_rss", of.get("anon"))
    peak = stats.get("max_usage", stats.get("usage"))
    return None if anonymous is None or peak is None else Memory(peak=int(peak), anonymous=int(anonymous))
