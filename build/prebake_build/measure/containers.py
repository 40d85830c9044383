"""Starts services in containers, to compare images with `prebake_build.measure.compare`.

The containers have the label `prebake.measure=1`, so leftovers of a killed process can be found:
`docker ps --all --filter label=prebake.measure=1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from prebake.baked import layout
from prebake.errors import PrebakeError

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

    `command` replaces the image's own arguments. `options` are further arguments of the SDK's `containers.create`, such
    as `mem_limit="2g"`, `nano_cpus=2_000_000_000`, `device_read_bps=[…]` or `user=12345`; they override `HARDENED`.
    """

    def __init__(
        self, client: Any, image: str, label: str, *, command: Sequence[str] | None = None, **options: Any
    ) -> None:
        self.label = label
        self._client = client
        self._image = image
        self._command = list(command) if command is not None else None
        self._options = {**HARDENED, **options}

    def launch(self) -> ContainerService:
        """Create and start a container; returns as soon as the engine has started it.

        Raises PrebakeError if the engine does not have the image or refuses the options, or if the container ends
        immediately; then the container is removed.
        """
        import docker

        port = f"{layout.DEFAULT_PORT}/tcp"
        try:
            container = self._client.containers.create(
                self._image, self._command, labels=LABEL, ports={port: ("127.0.0.1", None)}, **self._options
            )
        except docker.errors.ImageNotFound as error:
            raise PrebakeError(f"{self._image}: there is no such image here: build it, or pull it") from error
        except docker.errors.APIError as error:
            raise PrebakeError(f"{self._image}: the engine cannot create a container: {error.explanation}") from error
        service = ContainerService(container)
        try:
            container.start()
            container.reload()
            # there are no ports if the container has already ended
            published = (container.attrs["NetworkSettings"]["Ports"] or {}).get(port) or []
            if not published:
                raise PrebakeError(f"{self._image}: the container ended immediately; its output:\n{service.log()}")
            service.url = f"http://127.0.0.1:{published[0]['HostPort']}"
        except docker.errors.APIError as error:
            service.stop()
            raise PrebakeError(f"{self._image}: the container does not start: {error.explanation}") from error
        except BaseException:
            service.stop()
            raise
        return service


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
        return bool(self.container.status == "running")

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
