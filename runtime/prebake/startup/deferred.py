"""Deferred imports: the modules are imported on first use instead of at the import statement.

Frameworks import many packages that inference never uses: compilers, distributed tensors, loss functions. A finder at
the front of `sys.meta_path` returns a stand-in module for each package in `DEFERRED`. If one of the frameworks listed
for the package imports a name from it (`from scipy.optimize import linear_sum_assignment`), it gets a stand-in for that
name. The first real use of a stand-in (a call, an operator, `isinstance`, a base class) imports the real package, and
from then on the stand-ins forward to it. No file of any package is changed.

All other code gets the real package. Its import statement imports the package. If a framework has imported the package
before, `sys.modules` has the stand-in module, and the first attribute access by other code imports the package. From
then on the stand-in module forwards everything and differs from the real one only in its identity.

Limitations for the listed frameworks: if the package lacks a name, they notice at the name's first use. `except`
accepts no stand-in, so names ending in Error, Exception or Warning import their package at once. If a framework passes
a stand-in on to other code (`from framework import name_of_scipy`), that code gets the stand-in.

This resembles PEP 810 (explicit lazy imports, Python 3.15), for packages that do not use it. `PREBAKE_DEFER=0` turns it
off; `report()` lists the deferred packages and the names whose use imported them.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from prebake.baked import layout
from prebake.startup.callers import asker
from prebake.startup.standin_modules import StandInModule, own
from prebake.startup.standins import StandIn, resolved

__all__ = ["DEFERRED", "StandIn", "defer", "report", "resolved"]

logger = logging.getLogger(__name__)

_TORCH = ("torch", "torchvision", "transformers")
_SENTENCES = ("sentence_transformers",)
DEFERRED: Mapping[str, tuple[str, ...]] = {
    "accelerate": ("diffusers", "transformers"),
    "jinja2": ("transformers",),
    "scipy": ("easyocr", "sentence_transformers", "transformers"),
    "skimage": ("easyocr",),
    "sentence_transformers.base.trainer": _SENTENCES,
    "sentence_transformers.cross_encoder.trainer": _SENTENCES,
    "sentence_transformers.multi_vector_encoder.trainer": _SENTENCES,
    "sentence_transformers.sentence_transformer.trainer": _SENTENCES,
    "sentence_transformers.sparse_encoder.trainer": _SENTENCES,
    "sentence_transformers.trainer": _SENTENCES,
    "sklearn": ("sentence_transformers", "transformers"),
    "sympy": ("torch",),
    "torch._dynamo": (*_TORCH, "diffusers"),
    "torch.distributed.checkpoint": _TORCH,
    "torch.distributed.fsdp": _TORCH,
    "torch.distributed.tensor": _TORCH,
    "torch.distributions": _TORCH,
    "torch.export": _TORCH,
    "torch.masked": _TORCH,
    "torch.optim": (*_TORCH, *_SENTENCES),
    "torch.testing": _TORCH,
    "torchvision.datasets": ("torchvision",),
    "torchvision.io": ("torchvision", "transformers"),
    "torchvision.models": ("easyocr", "torchvision"),
    "transformers.distributed.checkpoint": ("transformers",),
    "transformers.distributed.expert_parallel": ("transformers",),
    "transformers.distributed.fsdp": ("transformers",),
    "transformers.distributed.tensor_parallel": ("transformers",),
    "transformers.integrations.flex_attention": ("transformers",),
    "transformers.quantizers": ("transformers",),
}
"""Package whose import is deferred with all its submodules → the packages that get stand-ins for it. These were tested:
during their import they do nothing with a name that a stand-in handles wrongly."""

_TOGETHER = frozenset({"torch"})
"""Distributions whose packages import each other in cycles and so depend on the import order. When one of their
deferred packages is used, all are imported, in the order in which they were first requested."""

_LOCK = threading.Lock()


class _Package:
    """One deferred package, and the name whose use imported it."""

    def __init__(self, name: str, importers: Sequence[str]) -> None:
        self.name = name
        self.importers = frozenset({*importers, __name__.partition(".")[0]})
        """Packages that get stand-ins for it, Prebake included: it only inspects modules for reports."""
        self.root = name.partition(".")[0]
        self.named = False
        self.leaving = False
        """Whether imports now find the real modules. Stand-ins forward only after `sys.modules` is cleared of them."""
        self.resolved_by: str | None = None
        self.settled = False
        """Whether every requested module has been imported; until then a module may lack its submodules."""
        self._actions: list[Callable[[], object]] = []

    @property
    def deferred(self) -> bool:
        return self.resolved_by is None

    def is_deferred_for(self, module: str) -> bool:
        """Whether that module's code gets stand-ins."""
        return self.deferred and module.partition(".")[0] in self.importers

    def module(self, path: str) -> ModuleType:
        """The real module, once the package is resolved."""
        return _import(path)

    def resolve(self, by: str) -> None:
        """Import the real package: remove its stand-ins from `sys.modules`, then import every module requested so far.

        Another thread may use the package meanwhile: it waits not here but on the import system's own locks, which
        resolve cycles.
        """
        with _LOCK:
            if not self.deferred:
                return
            group, names = _finder.undefer(self, by)
        for name in names:
            try:
                _import(name)
            except Exception as error:  # code that uses this module gets the error then
                logger.debug("%s: deferred, and cannot be imported: %s", name, error)
        for member in group:
            member.settled = True
            while member._actions:
                member._actions.pop()()

    def when_used(self, action: Callable[[], object]) -> bool:
        with _LOCK:
            if self.deferred:
                self._actions.append(action)
            return self.deferred


class _Finder(MetaPathFinder):
    """Handles deferred packages only."""

    def __init__(self) -> None:
        self.packages: dict[str, _Package] = {}
        self._named: dict[str, _Package] = {}
        """Module → its package, in the order in which they were first requested."""

    def package_of(self, name: str) -> _Package | None:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if package := self.packages.get(".".join(parts[:end])):
                return package
        return None

    def undefer(self, package: _Package, by: str) -> tuple[set[_Package], list[str]]:
        """Remove the stand-ins of the package and of those imported with it from `sys.modules`; return both."""
        others = self.packages.values() if package.root in _TOGETHER else ()
        group = {package, *(other for other in others if other.root == package.root and other.deferred)}
        for member in group:
            member.leaving = True
        names = [name for name, owner in self._named.copy().items() if owner in group]
        for name in names:
            _make_way(name)
        for member in group:
            member.resolved_by = by
        return group, names

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = self.package_of(fullname)
        if package is None or package.leaving:
            return None
        real = _real_spec(self, fullname, path, target)
        if real is None:
            return None
        spec = ModuleSpec(fullname, _Loader(package, self._named, real.loader), origin=real.origin)
        spec.submodule_search_locations = real.submodule_search_locations
        spec.has_location = real.has_location  # inspect reads the file names of all modules
        return spec


class _Loader(Loader):
    """Gives the listed packages a stand-in module, and all other code the real one."""

    def __init__(self, package: _Package, named: dict[str, _Package], real: object) -> None:
        self._package, self._named, self._real = package, named, real

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        self._package.named = True
        self._named[spec.name] = self._package
        return StandInModule(spec.name, self._package)

    def exec_module(self, module: ModuleType) -> None:
        """Run nothing until the module is used, unless other code imports it or another thread has used it."""
        name: str = own(module, "__name__")
        importer = asker()
        if not self._package.leaving and self._package.is_deferred_for(importer):
            return
        sys.modules.pop(name, None)  # before the import: the package's other modules must not get the stand-in
        self._package.resolve(by=f"import {name} in {importer or 'code without a module'}")
        importlib.import_module(name)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)  # get_data, get_resource_reader and the like


def _real_spec(own: _Finder, fullname: str, path: Sequence[str] | None, target: ModuleType | None) -> ModuleSpec | None:
    """The real module's spec, or None: a module that does not exist must not be found."""
    for finder in sys.meta_path:
        if finder is not own and (spec := finder.find_spec(fullname, path, target)) is not None:
            return spec
    return None


def _make_way(name: str) -> None:
    """Remove a stand-in from `sys.modules`, unless the import system is adding it right now."""
    module = sys.modules.get(name)
    if isinstance(module, StandInModule) and not getattr(own(module, "__spec__"), "_initializing", False):
        sys.modules.pop(name, None)


def _import(path: str) -> ModuleType:
    """The real module of a package that is no longer deferred. Imports its parents first: Python would not wait for a
    parent that another thread is importing."""
    parts = path.split(".")
    for end in range(1, len(parts)):
        if (package := _finder.package_of(name := ".".join(parts[:end]))) and package.leaving:
            _make_way(name)
            importlib.import_module(name)
    _make_way(path)
    return importlib.import_module(path)


_finder = _Finder()


def defer(packages: Mapping[str, Sequence[str]] = DEFERRED) -> None:
    """Defer the imports of these packages from now on; packages that are already imported are unaffected.

    `packages` maps each package to those that get stand-ins for it. All other code imports it as usual.

    Does nothing if `PREBAKE_DEFER=0`. Safe to call again.
    """
    if os.environ.get(layout.ENV_DEFER) == "0":
        return
    with _LOCK:
        for name, importers in packages.items():
            if name not in sys.modules and name not in _finder.packages and _installed(name):
                _finder.packages[name] = _Package(name, importers)
        if _finder not in sys.meta_path:
            sys.meta_path.insert(0, _finder)


def _installed(name: str) -> bool:
    """Whether the package is installed, checked without importing a parent."""
    return "." in name or importlib.util.find_spec(name) is not None


def report() -> dict[str, str | None]:
    """Deferred package → the name whose use imported it, or None while it is still deferred."""
    return {name: package.resolved_by for name, package in _finder.packages.items() if package.named}
