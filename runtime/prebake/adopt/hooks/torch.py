"""torch: `torch.load` of a declared file, and `torch.hub.load_state_dict_from_url`.

The result is the object of a model of the family `tensors`, mapped: private to the call, as a file that was read. A
file is declared by `path:` of its folder and `file`, or as `package:` if it lies in an installed package; the URL as
`url:`. What libraries load on the way to an object of their own is part of that load.

Arguments that the map cannot serve leave the file to the library. Where the file is gone, as in an image, the library
reads the baked object instead.
"""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from prebake.adopt import copies, redirect
from prebake.adopt.catalogue import PATH, Catalogue, catalogue
from prebake.adopt.hooks.huggingface_hub import LIBRARIES
from prebake.adopt.loads import Load, is_inside
from prebake.baked.hub import TENSORS
from prebake.baked.model import BakedModel

FAMILY = TENSORS
_PACKAGE, _URL = "package:", "url:"
_SITES = ("site-packages", "dist-packages")
OWN = LIBRARIES | {"torch", "torchvision", "torchaudio", "safetensors"}
"""Packages that load files on the way to something else."""


def install(module: ModuleType) -> None:
    """Replace `torch.load` and `torch.hub.load_state_dict_from_url`."""
    if hasattr(module.load, "_prebake"):
        return
    module.load = module.serialization.load = _load(module.load)  # type: ignore[attr-defined]
    hub = module.hub
    hub.load_state_dict_from_url = hub.load_url = _from_url(hub.load_state_dict_from_url)


def _load(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load(f: Any = None, map_location: Any = None, pickle_module: Any = None, **kwargs: Any) -> Any:
        path = path_of(f)
        if path is None or not redirect.applies() or redirect.caller() in OWN:
            return original(f, map_location, pickle_module, **kwargs)
        return served(
            load_of(path, Load(library="torch", function="torch.load", class_=FAMILY)),
            original=lambda: original(f, map_location, pickle_module, **kwargs),
            folder=None
            if _is_original(path)
            else functools.partial(_read, original, map_location, pickle_module, kwargs),
            unfit="pickle_module" if pickle_module is not None else _unfit(kwargs),
            map_location=map_location,
        )

    load._prebake = original  # type: ignore[attr-defined]
    return load


def _from_url(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def load_state_dict_from_url(url: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(url, str) or is_inside():
            return original(url, *args, **kwargs)
        map_location = args[1] if len(args) > 1 else kwargs.get("map_location")
        return served(
            Load(library="torch", function="torch.hub.load_state_dict_from_url", uri=_URL + url, class_=FAMILY),
            original=lambda: original(url, *args, **kwargs),
            map_location=map_location,
        )

    return load_state_dict_from_url


def served(
    load: Load,
    *,
    original: Callable[[], Any],
    folder: Callable[[BakedModel], Any] | None = None,
    unfit: str | None = None,
    map_location: Any = None,
) -> Any:
    """The tensors of the load's file: mapped, or by the library's function; where they belong on a device, there.

    `folder` has the library read the baked object, where there is no file for `original`.
    """
    unfit = unfit or _unfit_place(map_location)
    baked = None if redirect.observing() else _baked(load, catalogue())
    if baked is not None and unfit is not None and folder is None:
        baked, load = None, replace(load, reason=unfit)
    elif baked is None and (network := _network(load)) is not None:
        return redirect.serve(load, original=original, baked=network, folder=lambda _: original())
    return redirect.serve(
        load,
        original=original,
        baked=baked,
        unfit=unfit,
        mapped=lambda baked: _mapped(baked, map_location),
        folder=folder,
    )


def _baked(load: Load, known: Catalogue) -> BakedModel | None:
    """The model of this source; `models.toml` may add the sum of a URL's file to it."""
    found = known.matches(str(load.uri)) or [
        baked for baked in known.models if baked.manifest.source.uri.partition("#")[0] == load.uri
    ]
    if load.uri is not None and load.uri.startswith(PATH) and (file := known.file(load.uri.removeprefix(PATH))):
        found = [file, *found]
    if (name := load.detail.get("file")) is not None:
        return known.file_of(str(load.uri), name)
    return next((baked for baked in found if baked.manifest.family == FAMILY), None)


def _network(load: Load) -> BakedModel | None:
    """The network that has the file among its baked ones, or from which it was copied: the library reads it."""
    if redirect.observing() or load.uri is None:
        return None
    if load.uri.startswith(PATH):
        return catalogue().holding(load.uri.removeprefix(PATH))
    return catalogue().find(load.uri) if "file" in load.detail else None


def _is_original(path: Path) -> bool:
    """Whether the file is there, and is none that Prebake has written in its place."""
    written = not redirect.observing() and (copies.file_of(path) or catalogue().tensors_in(str(path)))
    return path.exists() and not written


def _read(
    original: Callable[..., Any], map_location: Any, pickle_module: Any, kwargs: Mapping[str, Any], baked: BakedModel
) -> Any:
    """What `torch.load` makes of the baked object, as a file in memory."""
    import io

    import torch

    file = io.BytesIO()
    torch.save(_mapped(baked, None), file)
    file.seek(0)
    left = {name: value for name, value in kwargs.items() if name != "mmap"}  # there is no file that it could map
    return original(file, map_location, pickle_module, **left)


def _mapped(baked: BakedModel, map_location: Any) -> Any:
    import torch

    module: Any = redirect.module_of(baked)
    if map_location is not None and torch.device(map_location).type != "cpu":
        module = module.to(map_location)
    return module.object()


def _unfit_place(map_location: Any) -> str | None:
    import torch

    known = map_location is None or isinstance(map_location, (str, torch.device))
    return None if known else f"map_location is a {type(map_location).__name__}"


def _unfit(kwargs: Mapping[str, Any]) -> str | None:
    """Why the map cannot serve a call with these arguments, or None."""
    left = set(kwargs) - {"mmap", "weights_only"}  # the result is the same with any value
    return sorted(left)[0] if left else None


def path_of(file: Any) -> Path | None:
    """The path of a file that is named, or open at its beginning."""
    if isinstance(file, (str, os.PathLike)):
        name: Any = os.fspath(file)
    else:
        name = getattr(file, "name", None)
        try:
            if not isinstance(name, str) or file.tell() != 0 or not _is_open(name, file.fileno()):
                return None
        except (AttributeError, OSError, ValueError):
            return None
    return Path(os.path.abspath(name)) if isinstance(name, str) else None  # noqa: PTH100  # resolves no links


def _is_open(name: str, descriptor: int) -> bool:
    """Whether the file of this name is the open one: a member of an archive has a name too, and no descriptor."""
    return os.path.samestat(os.stat(name), os.fstat(descriptor))  # noqa: PTH116


def load_of(path: Path, load: Load) -> Load:
    """The load with the source of the file; of a copy, that is the file in its repository."""
    if copied := copies.file_of(path):
        return replace(load, uri=copied[0], detail={"file": copied[1]})
    return replace(load, uri=source_of(path))


def source_of(path: Path) -> str:
    """The source of a file as `models.toml` spells it: of its package if it lies in one, else its path."""
    for place in sys.path:
        if place and Path(place).name in _SITES and path.is_relative_to(place):
            inside = path.relative_to(place).as_posix()
            if "/" in inside:
                return _PACKAGE + inside
    return PATH + str(path)
