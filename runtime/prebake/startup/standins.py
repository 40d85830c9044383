"""Stand-ins for names of a deferred package until their first use; see `prebake.startup.deferred`.

These count as a use: a call, an operator, an attribute that begins with two underscores, `isinstance` if it might be
true, subclassing, and pickling. What modules do with names while they are imported does not count: reading an
attribute, `X | None` in an annotation, `repr`, a marking decorator.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable
from typing import Any, Protocol

MARKERS = frozenset(
    f"torch._dynamo.{name}"
    for name in ("allow_in_graph", "assume_constant_result", "disable", "forbid_in_graph", "nonstrict_trace")
)
"""Decorators that only mark a function for their own package: nothing reads the mark before that is imported."""


_UNION = " | …"


class Deferred(Protocol):
    """The package that a name belongs to."""

    @property
    def deferred(self) -> bool:
        """Whether it is unused so far."""

    def resolve(self, by: str) -> None:
        """Import the real package, because of this name."""

    def when_used(self, action: Callable[[], object]) -> bool:
        """Do this once the package has been imported; False, and nothing, if it has been already."""


class StandIn:
    """Stands in for one name of a deferred package, or for an expression made from it without using it."""

    __slots__ = ("_label", "_package", "_real")

    def __init__(self, package: Deferred, label: str, real: Callable[[], Any]) -> None:
        object.__setattr__(self, "_package", package)
        object.__setattr__(self, "_label", label)
        object.__setattr__(self, "_real", real)

    def __getattr__(self, name: str) -> Any:
        package = _field(self, "_package")
        if name.startswith("__") or not package.deferred:
            return getattr(resolved(self), name)
        return StandIn(package, f"{_field(self, '_label')}.{name}", lambda: getattr(resolved(self), name))

    def __repr__(self) -> str:
        # dataclasses and inspect print annotations during imports; this must not import the package
        return f"<deferred {_field(self, '_label')}>" if _field(self, "_package").deferred else repr(resolved(self))

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(resolved(self), name, value)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        package = _field(self, "_package")
        if package.deferred and _field(self, "_label") in MARKERS:
            return _marker(self, package, *args, **kwargs)
        return resolved(self)(*args, **kwargs)

    def __or__(self, other: Any) -> Any:
        return self._union(lambda: resolved(self) | resolved(other))

    def __ror__(self, other: Any) -> Any:
        return self._union(lambda: resolved(other) | resolved(self))

    def _union(self, real: Callable[[], Any]) -> Any:
        """Annotations evaluate `Standin | None` during imports; this must not import the package."""
        package = _field(self, "_package")
        return StandIn(package, _field(self, "_label") + _UNION, real) if package.deferred else real()

    def __mro_entries__(self, bases: tuple[Any, ...]) -> tuple[Any, ...]:
        return (resolved(self),)

    def __instancecheck__(self, instance: Any) -> bool:
        return self.__subclasscheck__(type(instance))

    def __subclasscheck__(self, subclass: type) -> bool:
        # Nothing can be an instance of a class that was never imported. But another module may re-export the class
        # under the same name: then check the real one.
        label: str = _field(self, "_label")
        if _field(self, "_package").deferred and not label.endswith(_UNION):
            name = label.rpartition(".")[2]
            if not any(base.__name__ == name and not _is_pythons(base) for base in subclass.__mro__):
                return False
        return issubclass(subclass, resolved(self))

    def __reduce__(self) -> Any:
        return (_identity, (resolved(self),))


def _is_pythons(kind: type) -> bool:
    """Whether a class is from the standard library, whose names other packages reuse (`Number`, `Symbol`)."""
    return kind.__module__.partition(".")[0] in sys.stdlib_module_names


def _field(standin: StandIn, name: str) -> Any:
    return object.__getattribute__(standin, name)


def _identity(value: Any) -> Any:
    return value


def resolved(value: Any) -> Any:
    """The real object behind a stand-in, importing its package if necessary; any other value unchanged."""
    if not isinstance(value, StandIn):
        return value
    _field(value, "_package").resolve(by=_field(value, "_label"))
    return _field(value, "_real")()


def _marker(marker: StandIn, package: Deferred, *args: Any, **kwargs: Any) -> Any:
    """The result of a marking decorator while its package is deferred; without a function, a decorator."""
    if not args or args[0] is None:
        return lambda function: _marked_later(marker, package, function, *args[1:], **kwargs)
    return _marked_later(marker, package, *args, **kwargs)


def _marked_later(marker: StandIn, package: Deferred, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The function, unchanged while the package is deferred, and as the marker returns it from then on.

    A class is marked in its place: of the markers, `allow_in_graph` alone takes classes and returns them as they are.
    """

    def again(function: Callable[..., Any]) -> Any:
        return resolved(marker)(function, *args, **kwargs)

    if isinstance(function, type):
        if not (_field(marker, "_label").endswith(".allow_in_graph") and package.when_used(lambda: again(function))):
            return again(function)
        return function
    marked: list[Callable[..., Any]] = []

    @functools.wraps(function)
    def forward(*call_args: Any, **call_kwargs: Any) -> Any:
        if package.deferred:
            return function(*call_args, **call_kwargs)
        if not marked:
            marked.append(again(function))
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
    "__str__": str, "__format__": format, "__round__": round, "__divmod__": divmod,
    "__enter__": lambda value: value.__enter__(),
    "__exit__": lambda value, *error: value.__exit__(*error),
}  # fmt: skip
for _name, _function in _OPERATORS.items():
    setattr(StandIn, _name, _forward(_function))
StandIn.__rdivmod__ = _reflected(divmod)  # type: ignore[attr-defined]
for _name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow", "matmul", "and_", "xor", "lshift", "rshift"):
    _function = getattr(operator, _name)
    setattr(StandIn, f"__{_name.rstrip('_')}__", _forward(_function))
    setattr(StandIn, f"__r{_name.rstrip('_')}__", _reflected(_function))
