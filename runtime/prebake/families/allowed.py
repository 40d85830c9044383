"""The allow-list of Python modules whose code a manifest may reference.

A manifest is data, but for the family `torch` its class is code. So a class is imported only if the application, its
command line or its environment allows its module. `app` stands for `app` and its submodules. The class or function
must also be defined in an allowed module: if `app` contains `from os import system`, `app:system` is still refused.
Subclasses of `torch.nn.Module` are exempt from this second rule.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

from prebake.baked import layout
from prebake.documents.messages import nearest, quote
from prebake.errors import ConfigError

_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def allowed_modules(given: Sequence[str] = ()) -> tuple[str, ...]:
    """`given` plus the modules in `PREBAKE_ALLOW`. A string is a comma-separated list, as in the variable.

    Raises ConfigError for a string that is not a module name.
    """
    named = {"allow": given, layout.ENV_ALLOW: os.environ.get(layout.ENV_ALLOW, "")}
    return tuple(dict.fromkeys(name for where, names in named.items() for name in _listed(names, where)))


def _listed(names: Sequence[str], where: str) -> list[str]:
    if isinstance(names, str):
        names = [name for part in names.split(",") if (name := part.strip())]
    for name in names:
        if not isinstance(name, str) or not _MODULE.fullmatch(name):
            raise ConfigError(
                f"{where}: {quote(str(name))} is not a module name (expected a name such as app or "
                "my_package.networks, without the class)"
            )
    return list(names)


def covers(allow: Sequence[str], module: str) -> bool:
    """Whether the module is in the list, or a submodule of one that is.

    `app` does not cover `app.__main__`, because that is a program: it must be listed by its full name.
    """
    return any(module == name or (module.startswith(f"{name}.") and ".__" not in module[len(name) :]) for name in allow)


def check_allowed(factory: str, allow: Sequence[str], where: str) -> None:
    """Raise ConfigError unless the module of `module:factory` is allowed. Imports nothing."""
    module = factory.partition(":")[0]
    if covers(allow, module):
        return
    name = module if _MODULE.fullmatch(module) else "MODULE"
    raise ConfigError(
        f"{where}: {quote(factory)} is code that the application does not allow (allowed: {', '.join(allow) or 'none'})"
        f": a manifest alone must not decide what is imported. If you trust it, allow its module: {layout.ENV_ALLOW}="
        f'{name}, --allow {name}, or allow=["{name}"] for prebake.Models and prebake.load'
    )


def find_factory(factory: str, allow: Sequence[str], where: str) -> Any:
    """The class or function that `module:factory` refers to.

    Raises ConfigError if it is not allowed (checked before any import), can't be imported, is neither a class nor a
    function, or is defined outside the allowed modules without being a `torch.nn.Module`.
    """
    found = _imported(factory, allow, where)
    if not isinstance(found, (type, FunctionType, BuiltinFunctionType)):
        raise ConfigError(
            f"{where}: {factory} is a {type(found).__name__}, but a factory must be a class or a function: write a "
            "function that returns the module"
        )
    if not covers(allow, str(found.__module__)) and not _is_network(found):
        raise ConfigError(
            f"{where}: {factory} is defined in {found.__module__}, which is not allowed (allowed: {', '.join(allow)}): "
            f"bake it as {found.__module__}:{found.__qualname__} and allow that module, or write a function "
            f"in {factory.partition(':')[0]} that calls it"
        )
    return found


def find_function(name: str, allow: Sequence[str], where: str) -> Callable[..., object]:
    """The function that `module:function` refers to, for a warm-up.

    Raises ConfigError if it is not allowed (checked before any import), can't be imported, or is not a function defined
    in an allowed module.
    """
    found = _imported(name, allow, where)
    if not isinstance(found, FunctionType):
        raise ConfigError(f"{where}: {name} is a {type(found).__name__}: expected a function written in Python")
    if not covers(allow, str(found.__module__)):
        raise ConfigError(
            f"{where}: {name} is defined in {found.__module__}, which is not allowed (allowed: {', '.join(allow)}): "
            f"write a function in {name.partition(':')[0]} that calls it"
        )
    return found


def _imported(factory: str, allow: Sequence[str], where: str) -> Any:
    check_allowed(factory, allow, where)
    module, _, name = factory.partition(":")
    found: Any = None
    try:
        found = importlib.import_module(module)
        return getattr(found, name)
    except (ImportError, AttributeError) as error:
        if found is not None and isinstance(error, AttributeError):
            known = [known for known in dir(found) if not known.startswith("_")]
            raise ConfigError(f"{where}: cannot import {factory}: {error}{nearest(name, known)}") from error
        raise ConfigError(
            f"{where}: cannot import {factory}: {error} (is its package installed beside prebake?)"
        ) from error
    except SystemExit as error:
        raise ConfigError(
            f"{where}: cannot import {factory}: {module} is a program: its import raised {error!r}"
        ) from error


def _is_network(found: Any) -> bool:
    from torch import nn

    return isinstance(found, type) and issubclass(found, nn.Module)
