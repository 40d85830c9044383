"""The interface through which Prebake checks and measures a service.

A service registers a factory for an object with the interface `Service` in the entry-point group `prebake.services`.
`prebake check` makes it answer once, and `prebake measure` sends its request; both also accept
`--service MODULE:OBJECT`.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Protocol

from prebake.errors import ConfigError

GROUP = "prebake.services"


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One HTTP request to a running service."""

    method: str
    path: str
    body: bytes | None = None
    content_type: str | None = None
    """The body's content type; None sends none."""


class Service(Protocol):
    """A service that uses baked models."""

    modules: tuple[str, ...]
    """Modules that it imports before it serves, besides its models' frameworks; their reads are recorded too."""

    def answer(self, models: Any) -> str | None:
        """Answer one typical request with the loaded models. Returns the name of the model it used, or None if the
        service uses none of these models."""

    def request(self, models: Collection[str]) -> Request | None:
        """The same request over HTTP, for a service with these models; None if it uses none of them."""


def find_service(name: str | None) -> Service | None:
    """The installed service of this name, the service at `module:object`, or, without a name, the only one installed.

    Returns None if no name is given and not exactly one service is installed. Raises ConfigError for an unknown name.
    """
    from importlib.metadata import EntryPoint, entry_points

    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name is None:
        entries = list(installed.values())
        return entries[0].load()() if len(entries) == 1 else None
    entry = installed.get(name) or EntryPoint(name, name, GROUP)
    try:
        if ":" not in entry.value:
            raise AttributeError("expected the name of an installed service, or MODULE:OBJECT")
        service: Service = entry.load()()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"--service {name}: {error} (installed: {', '.join(sorted(installed)) or 'none'})") from error
    return service
