"""Options of a container, given as `NAME=VALUE` with the names of the Docker SDK's `containers.create`."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from prebake.errors import ConfigError

_OWN = {"image", "command", "labels", "ports", "detach"}
_LISTS = {"volumes", "environment", "cap_add", "cap_drop", "devices", "security_opt", "tmpfs"}
"""Options that may be given more than once: their values add up."""


def merged(texts: Iterable[str]) -> dict[str, Any]:
    """The options as keyword arguments.

    A value is JSON, else text. `volumes`, `environment` and other lists may be given several times; `environment` is a
    table or `NAME=VALUE`. Raises ConfigError.
    """
    options: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f'--docker-option: expected NAME=VALUE, such as mem_limit=2g, found "{text}"')
        if name in _OWN:
            raise ConfigError(f"--docker-option: {name} is set by `prebake measure` itself")
        try:
            parsed: Any = json.loads(value)
        except ValueError:
            parsed = value
        options[name] = _added(options.get(name), parsed, name) if name in _LISTS else parsed
    return options


def _added(before: Any, value: Any, name: str) -> Any:
    if isinstance(value, dict) and (before is None or isinstance(before, dict)):
        return {**(before or {}), **value}
    if isinstance(before, dict):
        raise ConfigError(f"--docker-option: {name} is given as a table and as a list: give it in one way")
    return [*(before or []), *(value if isinstance(value, list) else [value])]
