"""Hooks installed in the tests' own process, for one test, on the baked models of one folder."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from prebake.adopt import loads
from prebake.adopt.loads import Load

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def from_hub(repo: str) -> dict[str, Any]:
    """`source` of a manifest."""
    return {"uri": f"hf:{repo}", "revision": f"commit:{COMMIT}", "licence": None}


class Hooked:
    """Installs hooks; what they replace comes back when the test ends."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        monkeypatch.setattr(loads, "loads", [])
        monkeypatch.setattr(loads, "_said", set())
        for name in ("PREBAKE_ROOT", "PREBAKE_STRICT", "PREBAKE_OBSERVE"):
            monkeypatch.delenv(name, raising=False)

    def install(self, hook: ModuleType, module: Any, replaced: Iterable[tuple[Any, str]]) -> None:
        """Install a hook for a module of its library; `replaced` are the attributes that it sets."""
        for place, name in replaced:
            self._monkeypatch.setattr(place, name, vars(place)[name])
        hook.install(module)

    def serve(self, root: Path) -> None:
        """The models in this folder are baked."""
        self._monkeypatch.setenv("PREBAKE_ROOT", str(root))

    def strict(self) -> None:
        self._monkeypatch.setenv("PREBAKE_STRICT", "1")

    def observe(self, file: Path) -> None:
        self._monkeypatch.setenv("PREBAKE_OBSERVE", str(file))

    @property
    def loads(self) -> list[Load]:
        return list(loads.loads)

    @property
    def load(self) -> Load:
        """The only load."""
        (found,) = loads.loads
        return found

    @property
    def outcome(self) -> tuple[str, str | None, str | None]:
        """Outcome, model and reason of the only load."""
        return self.load.outcome, self.load.model, self.load.reason
