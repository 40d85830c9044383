"""What a service tells Prebake about itself, so that its start can be checked and measured.

A service registers an object with the attributes of `Service` in the entry-point group `prebake.services`.
`prebake check` has it answer once, and `prebake measure` sends its request; both also take `--service MODULE:OBJECT`.
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


class Service(Protocol):
    """A service that is built on baked models."""

    modules: tuple[str, ...]
    """What it imports before it serves, beside its models' frameworks; recorded with the reads of a start."""

    def answer(self, models: Any) -> str | None:
        """Answer one typical question with the loaded models; the name of the model that was asked, or None where
        the service has no use for any of them."""

    def request(self, models: Collection[str]) -> Request | None:
        """The same question over HTTP, for a service that has these models; None where it has no use for them."""


def find_service(name: str | None) -> Service | None:
    """The service of that name, of `module:object`, or the only one installed where no name is given.

    Returns None where no name is given and none, or more than one, is installed. Raises ConfigError for a name that
    leads to nothing.
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
