"""Whose code a manifest may name: the modules that the application allows.

A manifest is data, and the class that it names for the family `torch` is code. So a name is looked up only where the
application, its command line or its environment names the module. `app` stands for `app` and its submodules. What a
name leads to must be defined there as well: a module that says `from os import system` does not make `app:system` a
factory. Modules of torch are exempt from that second rule, wherever they are defined.
"""

from __future__ import annotations

import importlib
import os
import re
from collections.abc import Callable, Sequence
from types import BuiltinFunctionType, FunctionType
from typing import Any

from prebake.baked import layout
from prebake.documents.messages import quote
from prebake.errors import ConfigError

_MODULE = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)*")


def allowed_modules(given: Sequence[str] = ()) -> tuple[str, ...]:
    """`given`, and those that `PREBAKE_ALLOW` names; a string lists them with commas, as the variable does.

    Raises ConfigError for what is no name of a module.
    """
    named = {"allow": given, layout.ENV_ALLOW: os.environ.get(layout.ENV_ALLOW, "")}
    return tuple(dict.fromkeys(name for where, names in named.items() for name in _listed(names, where)))


def _listed(names: Sequence[str], where: str) -> list[str]:
    if isinstance(names, str):
        names = [name for part in names.split(",") if (name := part.strip())]
    for name in names:
        if not isinstance(name, str) or not _MODULE.fullmatch(name):
            raise ConfigError(
                f"{where}: {quote(str(name))} is not the name of a module (expected one such as app or "
                "my_package.networks, without the class)"
            )
    return list(names)


def covers(allow: Sequence[str], module: str) -> bool:
    """Whether the module is one of those or inside one of them.

    `app` does not cover `app.__main__`, which is a program: that name must be given itself.
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
        f": a manifest alone must not choose what is imported. If you trust it, name its module: {layout.ENV_ALLOW}="
        f'{name}, --allow {name}, or allow=["{name}"] for prebake.Models and prebake.load'
    )


def find_factory(factory: str, allow: Sequence[str], where: str) -> Any:
    """The class or function that `module:factory` names.

    Raises ConfigError where it is not allowed, before anything is imported; where it cannot be imported; where it is
    neither class nor function; and where it is defined outside the allowed modules and is no `torch.nn.Module`.
    """
    found = _imported(factory, allow, where)
    if not isinstance(found, (type, FunctionType, BuiltinFunctionType)):
        raise ConfigError(
            f"{where}: {factory} is a {type(found).__name__}, and a factory is a class or a function: write a function "
            "that returns the module"
        )
    if not covers(allow, str(found.__module__)) and not _is_network(found):
        raise ConfigError(
            f"{where}: {factory} is defined in {found.__module__}, which is not allowed (allowed: {', '.join(allow)}): "
            f"bake it by the name {found.__module__}:{found.__qualname__} and allow that module, or write a function "
            f"in {factory.partition(':')[0]} that calls it"
        )
    return found


def find_function(name: str, allow: Sequence[str], where: str) -> Callable[..., object]:
    """The function that `module:function` names, for a warm-up.

    Raises ConfigError where it is not allowed, before anything is imported; where it cannot be imported; and where it
    is no function that an allowed module defines.
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
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where}: cannot import {factory}: {error} (is its package installed beside prebake?)"
        ) from error
    except SystemExit as error:
        raise ConfigError(
            f"{where}: cannot import {factory}: {module} is a program: importing it ended with {error!r}"
        ) from error


def _is_network(found: Any) -> bool:
    from torch import nn

    return isinstance(found, type) and issubclass(found, nn.Module)
