"""Loads requested by a module while that module is being imported.

The importing thread holds the module's import lock until the import ends. If it waited for a load in another thread,
and that load imported the same module for its factory, the two would deadlock. So such a load runs in the importing
thread, which sees the module as far as it is defined, or the request fails with a ConfigError.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
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


def _factory(baked: BakedModel) -> tuple[str, str] | None:
    """Module and name if the class is a `module:factory`, else None."""
    module, colon, name = baked.manifest.class_.partition(":")
    return (module, name) if colon else None


def must_load_here(baked: BakedModel, loading: Iterable[BakedModel]) -> bool:
    """Whether the load must run in this thread because it may need a module that this thread is importing.

    `loading` are the models that are being loaded. Raises ConfigError if the load could never finish: this thread is
    itself part of a load, the factory is not defined yet, or another load waits for this thread's import.
    """
    importing = _being_imported()
    if FRAMEWORK_LOCK._is_owned():  # type: ignore[attr-defined]
        raise ConfigError(
            f"{baked.name}: {importing[0] if importing else 'a factory'} asks for model {quote(baked.name)} during "
            "the load of a model; the two loads would deadlock (ask in a function that is called later or, in a "
            'script, under if __name__ == "__main__")'
        )
    if not importing:
        return False
    asks = f"{baked.name}: {importing[0]} asks for model {quote(baked.name)} while it is being imported"
    for other in loading:
        if (needed := _factory(other)) and needed[0] in importing:
            raise ConfigError(
                f"{asks}, and the load of {quote(other.name)} in another thread waits until {needed[0]} is imported "
                "(ask in a function that is called after the import, or call start() after it)"
            )
    if (factory := _factory(baked)) is None:
        return False  # a class of an installed framework: loading it imports no module of the application
    module, name = factory
    if module in importing and not hasattr(sys.modules[module], name):
        raise ConfigError(
            f"{asks}, and {module}:{name} is not defined yet "
            f"(ask below the definition of {name}, or in a function that is called after the import)"
        )
    return module not in sys.modules or _initializing(module)
