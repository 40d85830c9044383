"""Modules that are imported when they are first used, not when they are first named.

Frameworks import much that inference never touches: compilers, distributed tensors, loss functions. A
finder in front of `sys.meta_path` answers for the packages in `DEFERRED` with a stand-in module. Taking a
name out of it (`from scipy.optimize import linear_sum_assignment`) gives a stand-in for that name. The
first real use of any of them (a call, an operator, `isinstance`, a base class) imports the package as it
is, and from then on the stand-ins forward to it. No file of any package is changed.

Like PEP 810 (explicit lazy imports, Python 3.15), for packages that do not know of it. `PREBAKE_DEFER=0`
turns it off; `report()` says what was deferred and what was imported after all.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import operator
import os
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

from prebake import layout

DEFERRED = (
    "jinja2",
    "scipy",
    "skimage",
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
    "transformers.distributed.checkpoint",
    "transformers.distributed.expert_parallel",
    "transformers.distributed.fsdp",
    "transformers.distributed.tensor_parallel",
    "transformers.integrations.flex_attention",
    "transformers.quantizers",
)
"""Packages whose import is put off, with all their submodules."""

_MARKERS = frozenset(
    f"torch._dynamo.{name}"
    for name in ("allow_in_graph", "assume_constant_result", "disable", "forbid_in_graph", "nonstrict_trace")
)
"""Decorators that only mark a function for their own package: until that is imported, nobody reads the mark."""

_LOCK = threading.RLock()


class _Package:
    """One deferred package: what was asked of it, and the real modules once they are imported."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.standins: dict[str, _StandInModule] = {}
        self.resolved_by: str | None = None
        self.seconds = 0.0

    @property
    def deferred(self) -> bool:
        return self.resolved_by is None

    def resolve(self, by: str) -> None:
        """Import the package for real: the stand-ins leave `sys.modules` first."""
        with _LOCK:
            if not self.deferred:
                return
            self.resolved_by = by
            started = time.perf_counter()
            for name in self.standins:
                if isinstance(sys.modules.get(name), _StandInModule):
                    del sys.modules[name]
            for name in sorted(self.standins):
                importlib.import_module(name)
            self.seconds = time.perf_counter() - started


class _Finder(MetaPathFinder, Loader):
    """Answers for deferred packages, and for them alone."""

    def __init__(self) -> None:
        self.packages: dict[str, _Package] = {}

    def package_of(self, name: str) -> _Package | None:
        parts = name.split(".")
        for end in range(1, len(parts) + 1):
            if package := self.packages.get(".".join(parts[:end])):
                return package
        return None

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        package = self.package_of(fullname)
        if package is None or not package.deferred:
            return None
        return ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        package = self.package_of(spec.name)
        assert package is not None
        standin = _StandInModule(spec.name, package)
        package.standins[spec.name] = standin
        return standin

    def exec_module(self, module: ModuleType) -> None:
        """Nothing runs until the module is used."""


class _StandInModule(ModuleType):
    """In the place of a module: gives stand-ins for its names until the real one is there."""

    def __init__(self, name: str, package: _Package) -> None:
        super().__init__(name)
        vars(self)["_prebake_package"] = package

    def __getattr__(self, name: str) -> Any:
        package: _Package = vars(self)["_prebake_package"]
        path: str = vars(self)["__name__"]
        if not package.deferred:
            return getattr(sys.modules[path], name)
        if name.startswith("__"):
            raise AttributeError(name)
        return StandIn(package, f"{path}.{name}", lambda: getattr(importlib.import_module(path), name))


class StandIn:
    """In the place of one name of a deferred package, or of what is made of it without using it."""

    __slots__ = ("_label", "_package", "_real")

    def __init__(self, package: _Package, label: str, real: Callable[[], Any]) -> None:
        object.__setattr__(self, "_package", package)
        object.__setattr__(self, "_label", label)
        object.__setattr__(self, "_real", real)

    def __getattr__(self, name: str) -> Any:
        package = _field(self, "_package")
        if name.startswith("__") or not package.deferred:
            return getattr(resolved(self), name)
        return StandIn(package, f"{_field(self, '_label')}.{name}", lambda: getattr(resolved(self), name))

    def __repr__(self) -> str:
        # dataclasses and inspect print annotations while modules load: no reason to import anything
        return f"<deferred {_field(self, '_label')}>" if _field(self, "_package").deferred else repr(resolved(self))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(resolved(self), name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        package = _field(self, "_package")
        if package.deferred and _field(self, "_label") in _MARKERS:
            return _marker(self, package, *args, **kwargs)
        return resolved(self)(*args, **kwargs)

    def __or__(self, other: Any) -> Any:
        return self._union(lambda: resolved(self) | resolved(other))

    def __ror__(self, other: Any) -> Any:
        return self._union(lambda: resolved(other) | resolved(self))

    def _union(self, real: Callable[[], Any]) -> Any:
        """`Standin | None` is what annotations say while modules load: no reason to import anything."""
        package = _field(self, "_package")
        return StandIn(package, f"{_field(self, '_label')} | …", real) if package.deferred else real()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (resolved(self),)

    def __instancecheck__(self, instance: Any) -> bool:
        return self.__subclasscheck__(type(instance))

    def __subclasscheck__(self, subclass: type) -> bool:
        # Nothing can be an instance of a class that was never imported. Only a class that stands elsewhere
        # under the same name might be the one meant: then look.
        if _field(self, "_package").deferred:
            name = _field(self, "_label").rpartition(".")[2]
            if all(base.__name__ != name for base in subclass.__mro__):
                return False
        return issubclass(subclass, resolved(self))

    def __reduce__(self) -> Any:
        return (_identity, (resolved(self),))


def _field(standin: StandIn, name: str) -> Any:
    return object.__getattribute__(standin, name)


def _identity(value: Any) -> Any:
    return value


def resolved(value: Any) -> Any:
    """The real thing behind a stand-in, importing its package where nobody did yet; anything else as it is."""
    if not isinstance(value, StandIn):
        return value
    _field(value, "_package").resolve(by=_field(value, "_label"))
    return _field(value, "_real")()


def _marker(marker: StandIn, package: _Package, *args: Any, **kwargs: Any) -> Any:
    """What a marking decorator gives while its package is deferred; called without a function, a decorator."""
    if not args or args[0] is None:
        return lambda function: _marked_later(marker, package, function, *args[1:], **kwargs)
    return _marked_later(marker, package, *args, **kwargs)


def _marked_later(marker: StandIn, package: _Package, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function as it is while the package is deferred, and as the marker makes it from then on."""
    marked: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def forward(*call_args: Any, **call_kwargs: Any) -> Any:
        if package.deferred:
            return function(*call_args, **call_kwargs)
        if not marked:
            marked.append(resolved(marker)(function, *args, **kwargs))
        return marked[0](*call_args, **call_kwargs)

    return forward


def _forward(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: StandIn, *args: Any, **kwargs: Any) -> Any:
        return function(resolved(self), *args, **kwargs)

    return method


def _reflected(function: Callable[..., Any]) -> Callable[..., Any]:
    def method(self: StandIn, other: Any) -> Any:
        return function(other, resolved(self))

    return method


_OPERATORS: dict[str, Callable[..., Any]] = {
    "__iter__": iter, "__next__": next, "__len__": len, "__bool__": bool, "__hash__": hash,
    "__int__": int, "__float__": float, "__index__": operator.index,
    "__contains__": operator.contains, "__getitem__": operator.getitem, "__setitem__": operator.setitem,
    "__delitem__": operator.delitem, "__eq__": operator.eq, "__ne__": operator.ne, "__lt__": operator.lt,
    "__le__": operator.le, "__gt__": operator.gt, "__ge__": operator.ge, "__neg__": operator.neg,
    "__pos__": operator.pos, "__abs__": operator.abs, "__invert__": operator.invert, "__dir__": dir,
    "__enter__": lambda value: value.__enter__(),
    "__exit__": lambda value, *error: value.__exit__(*error),
}  # fmt: skip
for _name, _function in _OPERATORS.items():
    setattr(StandIn, _name, _forward(_function))
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "xor", "lshift", "rshift"):
    _function = getattr(operator, _name)
    setattr(StandIn, f"__{_name.rstrip('_')}__", _forward(_function))
    setattr(StandIn, f"__r{_name.rstrip('_')}__", _reflected(_function))

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
    return {name: package.resolved_by for name, package in _finder.packages.items() if package.standins}
