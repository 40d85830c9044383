"""Services started in containers: what `prebake_build.measure.compare` launches where images are compared.

The containers carry the label `prebake.measure=1`, so that what a killed process left behind can be found:
`docker ps --all --filter label=prebake.measure=1`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from prebake.baked import layout
from prebake.errors import PrebakeError

LABEL = {"prebake.measure": "1"}
"""What marks the containers of `ContainerLauncher`."""


HARDENED: Mapping[str, Any] = {
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
}
"""How containers are started unless told otherwise: as a careful administrator runs them."""


class ContainerLauncher:
    """Starts a service's image, with its port published on 127.0.0.1.

    `command` replaces the image's own arguments. `options` are more of what the SDK's `containers.create`
    takes, such as `mem_limit="2g"`, `nano_cpus=2_000_000_000`, `device_read_bps=[…]` or `user=12345`; they
    take precedence over `HARDENED`.
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

        Raises PrebakeError where the engine has no such image, refuses the options, or the container ends at
        once; nothing is left behind then.
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
            raise PrebakeError(f"{self._image}: the engine makes no container of it: {error.explanation}") from error
        service = ContainerService(container)
        try:
            container.start()
            container.reload()
            # no ports stand here where the container has ended already
            published = (container.attrs["NetworkSettings"]["Ports"] or {}).get(port) or []
            if not published:
                raise PrebakeError(f"{self._image}: the container ended at once; it wrote:\n{service.log()}")
            service.url = f"http://127.0.0.1:{published[0]['HostPort']}"
        except docker.errors.APIError as error:
            service.stop()
            raise PrebakeError(f"{self._image}: the container does not start: {error.explanation}") from error
        except BaseException:
            service.stop()
            raise
        return service


class ContainerService:
    """One container that was launched."""

    def __init__(self, container: Any) -> None:
        self.url = ""
        self.container = container
        """The SDK's object, for more than a measurement asks."""
        self._removed_log: str | None = None

    def alive(self) -> bool:
        """Whether it still runs."""
        if self._removed_log is not None:
            return False
        self.container.reload()
        return bool(self.container.status == "running")

    def log(self) -> str:
        """What it wrote on both outputs, also after `stop`."""
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
