"""Loads requested by a module while that module is being imported.

The importing thread holds the module's import lock until the import ends. If it waited for a load in another thread,
and that load imported the same module for its factory, the two would deadlock. So such a load runs in the importing
thread, which sees the module as far as it is defined, or the request fails with a ConfigError.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from types import FrameType

from prebake.baked.model import BakedModel
from prebake.documents.messages import quote
from prebake.errors import ConfigError
from prebake.tiers.locks import FRAMEWORK_LOCK


def _being_imported() -> tuple[str, ...]:
    """Modules that this thread is importing, innermost first. `__main__` is not imported, so it is not listed."""
    found: list[str] = []
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_code.co_name == "<module>" and _initializing(name := frame.f_globals.get("__name__", "")):
            found.append(name)
        frame = frame.f_back
    return tuple(found)


def _initializing(module: str) -> bool:
    return bool(getattr(getattr(sys.modules.get(module), "__spec__", None), "_initializing", False))


@dataclass(frozen=True, kw_only=True, slots=True)
class Needed:
    """The application's code that the load of a model imports."""

    model: str
    factory: tuple[str, str] | None
    """Module and name, if the class is a `module:factory`."""
    modules: tuple[str, ...]
    """The modules of the factory and of the warm-up."""


def needed_by(baked: BakedModel, warm: bool) -> Needed:
    """The application's code that a load needs; with `warm`, including its warm-up."""
    module, colon, name = baked.manifest.class_.partition(":")
    declared = baked.manifest.loading.warmup
    warmup = (declared.partition(":")[0],) if warm and isinstance(declared, str) else ()
    if not colon:
        return Needed(model=baked.name, factory=None, modules=warmup)
    return Needed(model=baked.name, factory=(module, name), modules=(module, *warmup))


def must_load_here(needed: Needed, loading: Iterable[Needed]) -> bool:
    """Whether the load must run in this thread because it may need a module that this thread is importing.

    `loading` is what the running loads need. Raises ConfigError if the load could never finish: this thread is itself
    part of a load, the factory is not defined yet, or another load waits for this thread's import.
    """
    importing = _being_imported()
    if FRAMEWORK_LOCK._is_owned():  # type: ignore[attr-defined]
        raise ConfigError(
            f"{needed.model}: {importing[0] if importing else 'a factory'} asks for model {quote(needed.model)} during "
            "the load of a model; the two loads would deadlock (ask in a function that is called later or, in a "
            'script, under if __name__ == "__main__")'
        )
    if not importing:
        return False
    asks = f"{needed.model}: {importing[0]} asks for model {quote(needed.model)} while it is being imported"
    for other in loading:
        if waits := next((module for module in other.modules if module in importing), None):
            raise ConfigError(
                f"{asks}, and the load of {quote(other.model)} in another thread waits until {waits} is imported "
                "(ask in a function that is called after the import, or call start() after it)"
            )
    if needed.factory and needed.factory[0] in importing:
        module, name = needed.factory
        if not hasattr(sys.modules[module], name):
            raise ConfigError(
                f"{asks}, and {module}:{name} is not defined yet "
                f"(ask below the definition of {name}, or in a function that is called after the import)"
            )
    # classes of installed frameworks are not listed: they import no module of the application
    return any(module not in sys.modules or _initializing(module) for module in needed.modules)
