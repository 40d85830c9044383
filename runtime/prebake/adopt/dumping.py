"""A foreign process that is to be dumped: what of it the snapshot depends on, and a refusal where it can't be dumped.

Two things go wrong in services that do not know of snapshots. They read a variable while they are imported, so that the
container's value would be ignored: the names that the application asks for are noted, and a container that sets one
starts the ordinary way. And they open their port, or leave that to other processes, so that no dump is ever taken: a
process that listens ends the build with the reason.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from types import FrameType
from typing import Any

from prebake.adopt.catalogue import catalogue
from prebake.snapshot import imported, point

SETTINGS = ("pydantic_settings", "decouple", "environs", "starlette", "dynaconf", "dotenv")
"""Libraries that ask for variables on behalf of the application."""
_BETWEEN = ("os", "_collections_abc", "collections.abc", __name__)
"""Modules between who asks and the variable."""
_OWN = os.path.dirname(os.path.dirname(__file__))  # noqa: PTH120


def begin() -> None:
    """Prepare this process, before the application's code runs."""
    os.environ.__class__ = _Environment
    listen = socket.socket.listen
    point.watch(_baked_files)
    point.before_snapshot(_fields_of_settings)

    def refuse(self: socket.socket, *backlog: int) -> None:
        if point.wanted() and self.family in (socket.AF_INET, socket.AF_INET6):
            where = ":".join(map(str, self.getsockname()[:2]))
            point.refuse(
                f"{' '.join(sys.argv)} opens {where} before it was dumped: call prebake.snapshot.here() once "
                "everything is loaded and before that, or serve the application by uvicorn, with one process"
            )
        listen(self, *backlog)

    @point.after_restore
    def end() -> None:
        os.environ.__class__ = os._Environ
        socket.socket.listen = listen  # type: ignore[method-assign]

    socket.socket.listen = refuse  # type: ignore[method-assign, assignment]


def _baked_files() -> list[Path]:
    models = catalogue().models
    return [model.folder / file.path for model in models for file in model.manifest.files]


def _fields_of_settings() -> None:
    """Note the names that pydantic-settings looks for: it goes through all variables, and asks for none."""
    module: Any = sys.modules.get("pydantic_settings")
    classes = [module.BaseSettings] if module else []
    while classes:
        kind = classes.pop()
        classes += kind.__subclasses__()
        prefix = kind.model_config.get("env_prefix") or ""
        for name, field in kind.model_fields.items():
            aliases = getattr(field.validation_alias, "choices", [field.validation_alias or prefix + name])
            for known in filter(lambda alias: isinstance(alias, str), aliases):
                for variant in (known, known.upper(), known.lower()):
                    point.asked.setdefault(variant, f"{kind.__module__}.{kind.__qualname__}")


class _Environment(os._Environ):  # type: ignore[type-arg]
    """`os.environ`, which notes what the application asks for by name."""

    def __getitem__(self, name: Any) -> Any:
        if name not in point.asked and (asking := _application(sys._getframe(1))):
            point.asked[name] = asking
        return super().__getitem__(name)


def _application(frame: FrameType | None) -> str | None:
    """File and line of the application's code that asks; None if it is a library's, or Python's."""
    while frame is not None and frame.f_globals.get("__name__") in _BETWEEN:
        frame = frame.f_back
    if frame is None:
        return None
    file, module = frame.f_code.co_filename, str(frame.f_globals.get("__name__"))
    if module.partition(".")[0] in SETTINGS:
        return module
    if file.startswith(_OWN) or imported.is_library(file):
        return None
    return f"{file}:{frame.f_lineno}"
