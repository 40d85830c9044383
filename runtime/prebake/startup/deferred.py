"""Modules that are imported when they are first used, not when they are first named.

Frameworks import much that inference never touches: compilers, distributed tensors, loss functions. A
finder in front of `sys.meta_path` answers for the packages in `DEFERRED` with a stand-in module. Taking a
name out of it (`from scipy.optimize import linear_sum_assignment`) gives a stand-in for that name. The
first real use of any of them (a call, an operator, `isinstance`, a base class) imports the package as it
is, and from then on the stand-ins forward to it. No file of any package is changed.

What cannot be kept up: a name that the package does not have is noticed at its first use; a stand-in is no class
for `except`, so names ending in Error, Exception or Warning import their package at once.

Like PEP 810 (explicit lazy imports, Python 3.15), for packages that do not know of it. `PREBAKE_DEFER=0`
turns it off; `report()` says what was deferred and what was imported after all.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import threading
import time
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from prebake.baked import layout
from prebake.startup.standins import StandIn, resolved

__all__ = ["DEFERRED", "StandIn", "defer", "report", "resolved"]

logger = logging.getLogger(__name__)

DEFERRED = (
    "jinja2",
    "scipy",
    "skimage",
    "sklearn",
    "sympy",
    "torch._dynamo",
    "torch.distributed.checkpoint",
    "torch.distributed.fsdp",
    "torch.distributed.tensor",
    "torch.distributions",
    "torch.export",
    "torch.masked",
    "torch.optim",
    "torch.testing",
    "torchvision.datasets",
    "torchvision.io",
    "torchvision.models",
    "transformers.distributed.checkpoint",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.fsdp",
    "transformers.distributed.tensor_parallel",
    "transformers.integrations.flex_attention",
    "transformers.quantizers",
)
"""Packages whose import is put off, with all their submodules."""

_TOGETHER = frozenset({"torch"})
"""Distributions whose packages import each other in circles, and so only in the order of their own. When one of
its deferred packages is used, all are imported, in the order in which they were first named."""
_CAUGHT = ("Error", "Exception", "Warning")
_ABOUT_THE_REAL_ONE = frozenset({"__version__", "__all__", "__author__"})
"""Names with underscores that a module defines. Others are the import system's, which every module has."""

_LOCK = threading.Lock()


class _Package:
    """One deferred package, and the name whose use imported it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.root = name.partition(".")[0]
        self.named = False
        self.leaving = False
        """Whether imports find the real modules from now on. Stand-ins wait until their own are out of the way."""
        self.resolved_by: str | None = None
        self.seconds = 0.0

    @property
    def deferred(self) -> bool:
        return self.resolved_by is None

    def resolve(self, by: str) -> None:
        """Import the package for real: its stand-ins leave `sys.modules`, then everything named so far is imported.

        Another thread may use it meanwhile: it is not held here, but by the import system's own locks, which know
        how to end a circle.
        """
        with _LOCK:
            if not self.deferred:
                return
            names = _finder.undefer(self, by)
        started = time.perf_counter()
        for name in names:
            try:
                _import(name)
            except Exception as error:  # whoever asked for this very module is told when it is taken from it
                logger.debug("%s: deferred, and cannot be imported: %s", name, error)
        self.seconds = time.perf_counter() - started


class _Finder(MetaPathFinder, Loader):
    """Answers for deferred packages, and for them alone."""

    def __init__(self) -> None:
        self.packages: dict[str, _Package] = {}
        self._named: dict[str, _Package] = {}
        """Module → its package, in the order in which they were first named."""

    def package_of(self, name: str) -> _Package | None:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if package := self.packages.get(".".join(parts[:end])):
                return package
        return None

    def undefer(self, package: _Package, by: str) -> list[str]:
        """Take the stand-ins of the package, and of those that go with it, out of `sys.modules`; their names."""
        others = self.packages.values() if package.root in _TOGETHER else ()
        group = {package, *(other for other in others if other.root == package.root and other.deferred)}
        for member in group:
            member.leaving = True
        names = [name for name, owner in self._named.copy().items() if owner in group]
        for name in names:
            _make_way(name)
        for member in group:
            member.resolved_by = by
        return names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = self.package_of(fullname)
        if package is None or package.leaving:
            return None
        real = _real_spec(self, fullname, path, target)
        if real is None:
            return None
        spec = ModuleSpec(fullname, self, origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        spec.has_location = real.has_location  # inspect looks at the files of all modules
        return spec

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        package = self.package_of(spec.name)
        assert package is not None
        package.named = True
        self._named[spec.name] = package
        return _StandInModule(spec.name, package)

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs until the module is used, unless another thread used it this moment."""
        name: str = vars(module)["__name__"]
        package: _Package = vars(module)["_prebake_package"]
        if package.leaving:
            sys.modules.pop(name, None)
            importlib.import_module(name)


def _real_spec(own: _Finder, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """Where the module really is: one that does not exist must be missing, deferred or not."""
    for finder in sys.meta_path:
        if finder is not own and (spec := finder.find_spec(fullname, path, target)) is not None:
            return spec
    return None


class _StandInModule(ModuleType):
    """In the place of a module: gives stand-ins for its names until the real one is there."""

    def __init__(self, name: str, package: _Package) -> None:
        super().__init__(name)
        vars(self)["_prebake_package"] = package

    def __getattr__(self, name: str) -> Any:
        package: _Package = vars(self)["_prebake_package"]
        path: str = vars(self)["__name__"]
        if package.deferred and not name.endswith(_CAUGHT) and name not in _ABOUT_THE_REAL_ONE:
            if name.startswith("__"):
                raise AttributeError(name)
            return StandIn(package, f"{path}.{name}", lambda: getattr(_import(path), name))
        return getattr(self._real(name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        # the import system sets its own names, and a package's submodules
        if name.startswith("__") or isinstance(value, _StandInModule):
            super().__setattr__(name, value)
        else:
            setattr(self._real(name), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._real(name), name)

    def __dir__(self) -> list[str]:
        return dir(self._real("__dir__"))

    def _real(self, asked: str) -> ModuleType:
        path: str = vars(self)["__name__"]
        vars(self)["_prebake_package"].resolve(by=f"{path}.{asked}")
        return _import(path)


def _make_way(name: str) -> None:
    """Take a stand-in out of `sys.modules`, unless the import system is just putting it there."""
    module = sys.modules.get(name)
    if isinstance(module, _StandInModule) and not getattr(module.__spec__, "_initializing", False):
        sys.modules.pop(name, None)


def _import(path: str) -> ModuleType:
    """The real module of a package that is deferred no more, its parents first: Python would not wait for one that
    another thread is just importing."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        if (package := _finder.package_of(name := ".".join(parts[:end]))) and package.leaving:
            _make_way(name)
            importlib.import_module(name)
    _make_way(path)
    return importlib.import_module(path)


_finder = _Finder()


def defer(packages: Sequence[str] = DEFERRED) -> None:
    """Put off the import of these packages, from now on; those already imported stay as they are.

    `PREBAKE_DEFER=0` makes it do nothing. Safe to call again.
    """
    if os.environ.get(layout.ENV_DEFER) == "0":
        return
    with _LOCK:
        for name in packages:
            if name not in sys.modules and name not in _finder.packages and _installed(name):
                _finder.packages[name] = _Package(name)
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)


def _installed(name: str) -> bool:
    """Whether the package can be imported at all, judged without importing a parent."""
    return "." in name or importlib.util.find_spec(name) is not None


def report() -> dict[str, str | None]:
    """Deferred package → the name whose use imported it, or None while it is still put off."""
    return {name: package.resolved_by for name, package in _finder.packages.items() if package.named}
