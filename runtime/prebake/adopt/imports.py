"""Functions that run when a module is imported, without importing it.

A finder at the front of `sys.meta_path` looks for the registered names only; for all others it costs one look-up in a
dictionary. It finds a module as the other finders do and wraps its loader, which takes itself out before the module's
code runs, so that the module looks as without it.

Every process imports this module, so it imports nothing that Python's start has not imported already.
"""

from __future__ import annotations

import sys
from _thread import RLock, get_ident

TYPE_CHECKING = False  # importing `typing` for its constant would cost time
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from importlib.machinery import ModuleSpec
    from types import ModuleType

__all__ = ["around_import", "when_imported"]


def when_imported(name: str, function: Callable[[ModuleType], object]) -> None:
    """Call `function(module)` after the code of the module of this name has run, or now if it is imported already.

    A module that is reloaded gets the call again. If the function raises an exception, it is logged as a warning: it
    must not break an import of the application.
    """
    with _finder.lock:
        _install()
        _finder.after[name] = (*_finder.after.get(name, ()), function)
        module = sys.modules.get(name)
    if module is not None:
        _call(function, module)


def around_import(name: str, context: Callable[[str], AbstractContextManager[object]]) -> None:
    """Run the code of the module of this name inside `context(name)`; does nothing if it is imported already."""
    with _finder.lock:
        _install()
        _finder.around[name] = context


class _Finder:
    """Finds the registered modules with the other finders, and wraps their loaders."""

    def __init__(self) -> None:
        self.lock = RLock()
        self.after: dict[str, tuple[Callable[[ModuleType], object], ...]] = {}
        self.around: dict[str, Callable[[str], AbstractContextManager[object]]] = {}
        self._finding: set[tuple[int, str]] = set()
        """Thread and name of each search under way: other finders may ask all finders too, this one included."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname not in self.after and fullname not in self.around:
            return None
        search = (get_ident(), fullname)
        if search in self._finding:
            return None
        self._finding.add(search)
        try:
            spec = _real_spec(fullname, path, target)
        finally:
            self._finding.discard(search)
        if spec is not None and hasattr(spec.loader, "exec_module"):
            spec.loader = _Loader(spec.loader)  # type: ignore[assignment]  # an abstract base would be an import
        return spec


class _Loader:
    """A module's own loader, and what was registered for the module."""

    def __init__(self, real: object) -> None:
        self._real = real

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        found: ModuleType | None = self._real.create_module(spec)  # type: ignore[attr-defined]
        return found

    def exec_module(self, module: ModuleType) -> None:
        name = module.__name__
        if module.__spec__ is not None:
            module.__spec__.loader = self._real  # type: ignore[assignment]
        module.__loader__ = self._real  # type: ignore[assignment]
        context = _context(name)
        if context is None:
            self._real.exec_module(module)  # type: ignore[attr-defined]
        else:
            with context:
                self._real.exec_module(module)  # type: ignore[attr-defined]
        for function in _finder.after.get(name, ()):
            _call(function, module)

    def __getattr__(self, name: str) -> object:
        return getattr(self._real, name)  # get_code for `python -m`, get_data and the like


def _real_spec(name: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    for finder in sys.meta_path:
        if finder is not _finder and (spec := finder.find_spec(name, path, target)) is not None:
            return spec
    return None


def _context(name: str) -> AbstractContextManager[object] | None:
    make = _finder.around.get(name)
    try:
        return None if make is None else make(name)
    except Exception as error:
        _warn(name, error)
        return None


def _call(function: Callable[[ModuleType], object], module: ModuleType) -> None:
    try:
        function(module)
    except Exception as error:  # of whatever kind: the application's import goes on
        _warn(module.__name__, error)


def _warn(name: str, error: Exception) -> None:
    import logging

    logging.getLogger(__name__).warning(
        "%s: is used as it is: Prebake cannot prepare it: %s: %s", name, type(error).__name__, error
    )


def _install() -> None:
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


_finder = _Finder()
