"""The stand-in that `sys.modules` holds for a module of a deferred package; see `prebake.startup.deferred`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, Protocol

from prebake.startup.callers import asker, asks_itself
from prebake.startup.standins import StandIn

_CAUGHT = ("Error", "Exception", "Warning")
_ABOUT_THE_REAL_ONE = frozenset({"__version__", "__all__", "__author__"})
"""Dunder names that a module defines itself. The import system sets the others, on every module."""
_OF_EVERY_MODULE = frozenset({"__cached__", "__file__", "__path__", "__warningregistry__"})
"""Names that the import system, inspect and unittest look up in all of `sys.modules`; they must not cause an import."""
_NOT_ITS_OWN = frozenset({"__dict__", "__doc__"})
"""Names that every module has, so the stand-in has them too, but should return the real module's values."""
_VERSIONED = frozenset({"accelerate"})
"""Packages whose `__version__` is that of their distribution: to ask for it is no use."""
_PACKAGE, _REAL = "_prebake_package", "_prebake_real"


class Deferred(Protocol):
    """The package that a module belongs to."""

    @property
    def deferred(self) -> bool:
        """Whether it is unused so far."""

    @property
    def settled(self) -> bool:
        """Whether its import has ended."""

    def is_deferred_for(self, module: str) -> bool:
        """Whether that module's code gets stand-ins."""

    def resolve(self, by: str) -> None:
        """Import the real package, because of this name."""

    def when_used(self, action: Callable[[], object]) -> bool:
        """Do this once the package has been imported; False, and nothing, if it has been already."""

    def module(self, path: str) -> ModuleType:
        """The real module, once the package is resolved."""


class StandInModule(ModuleType):
    """Stands in for a module. The packages for which it is deferred get stand-ins for its names. The first access by
    other code imports the package; from then on it has all attributes of the real module, `__dict__` included."""

    def __init__(self, name: str, package: Deferred) -> None:
        super().__init__(name)
        super().__setattr__(_PACKAGE, package)

    def __getattribute__(self, name: str) -> Any:
        names = super().__getattribute__("__dict__")
        if name == "__reduce_ex__":
            return super().__getattribute__(name)
        if (real := names.get(_REAL)) is not None:
            return getattr(real, name)
        # CPython's import statement takes the module from `sys.modules` and reads its `__spec__`: this imports the
        # package for code that must get the real module. If importlib reads it, an import is in progress.
        if name in _NOT_ITS_OWN or (name == "__spec__" and asks_itself(1)):
            package: Deferred = names[_PACKAGE]
            if not package.is_deferred_for(asker()):
                return getattr(_real(self, name), name)
        return super().__getattribute__(name)

    def __getattr__(self, name: str) -> Any:
        package: Deferred = own(self, _PACKAGE)
        path: str = own(self, "__name__")
        if package.deferred and name in _OF_EVERY_MODULE:
            raise AttributeError(f"module {path!r} has no attribute {name!r}")
        if name == "__version__" and package.deferred and path in _VERSIONED and package.is_deferred_for(asker()):
            from importlib.metadata import version

            return version(path)
        if not name.endswith(_CAUGHT) and name not in _ABOUT_THE_REAL_ONE and package.is_deferred_for(asker()):
            if name.startswith("__"):
                raise AttributeError(f"module {path!r} has no attribute {name!r}")
            return StandIn(package, f"{path}.{name}", lambda: getattr(package.module(path), name))
        return getattr(_real(self, name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # the import system sets its own names, and a package's submodules
        if own(self, _REAL) is None and (name.startswith("__") or isinstance(value, StandInModule)):
            super().__setattr__(name, value)
        else:
            setattr(_real(self, name), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(_real(self, name), name)

    def __dir__(self) -> list[str]:
        return dir(_real(self, "__dir__"))

    def __reduce_ex__(self, protocol: Any) -> Any:
        # cloudpickle pickles modules by name, but recognises them by their exact class
        return importlib.import_module, (own(self, "__name__"),)


def own(module: ModuleType, name: str) -> Any:
    """The stand-in module's own attribute, for any caller; None if it has no such name."""
    return object.__getattribute__(module, "__dict__").get(name)


def _real(module: StandInModule, asked: str) -> ModuleType:
    """The real module behind a stand-in. Imports its package if necessary."""
    found: ModuleType | None = own(module, _REAL)
    if found is not None:
        return found
    package: Deferred = own(module, _PACKAGE)
    path: str = own(module, "__name__")
    package.resolve(by=f"{path}.{asked}")
    found = package.module(path)
    if package.settled and not getattr(found.__spec__, "_initializing", False):
        object.__getattribute__(module, "__dict__")[_REAL] = found
    return found
