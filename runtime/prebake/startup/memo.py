"""What a framework works out anew at every start from its own installed files, kept from one start to the next.

`import transformers` reads its 1,600 model files to learn which class stands in which (0.2 s of a warm start).
The answer depends on those files alone, so it is kept as JSON: in the image, where the build writes it, or in the
user's cache. A finder wraps the one function that computes it; no file of the package is changed.
`PREBAKE_MEMO` names the folder, and empty turns it off.

An installation that `PREBAKE_MEMO` speaks for is taken to be as it was installed: an image's layer, `site-packages`.
Anywhere else, each of its files is looked at (size and time, 4 to 25 ms for 2,500), so that an edited one counts.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

from prebake.baked import layout

logger = logging.getLogger(__name__)

_MODULE, _FUNCTION = "transformers.utils.import_utils", "define_import_structure"
_INSTALLED = frozenset({"site-packages", "dist-packages"})
Structure = dict[frozenset[str], dict[str, set[str]]]
"""Backends that a class needs → module → its public names, as transformers' `_LazyModule` takes it."""


def folder() -> Path | None:
    """Where memos are kept; None where `PREBAKE_MEMO` is empty, and where the user has no home to keep them in.

    By hand, and not by platformdirs: every start would import that, to save part of a start.
    """
    named = os.environ.get(layout.ENV_MEMO)
    if named is not None:
        return Path(named) if named else None
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # HOME is unset and no user has this id, as in many containers
        return None
    return cache / "prebake" / "memo"


def install() -> None:
    """Keep that function's result from now on. Does nothing where the module is imported already; safe to repeat."""
    if _MODULE in sys.modules or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if (kept := folder()) is not None:
        sys.meta_path.insert(0, _Finder(kept))


class _Finder(MetaPathFinder):
    """Finds the one module as usual, and has its loader wrapped."""

    def __init__(self, kept: Path) -> None:
        self._kept = kept

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _MODULE:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _Wrapped(spec.loader, self._kept)
        return spec


class _Wrapped(Loader):
    """The module's own loader; afterwards the function remembers."""

    def __init__(self, loader: Loader, kept: Path) -> None:
        self._loader, self._kept = loader, kept

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if hasattr(module, _FUNCTION):
            setattr(module, _FUNCTION, _remembering(getattr(module, _FUNCTION), self._kept))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_source and the like, for whoever inspects modules


def _remembering(compute: Callable[..., Structure], kept: Path) -> Callable[..., Structure]:
    # asked for twice in an import: by `transformers` with a prefix, by `transformers.models` without, of itself
    identities: dict[Path, str] = {}

    @functools.wraps(compute)
    def define_import_structure(module_path: str, prefix: str | None = None) -> Structure:
        place = Path(module_path)
        models = place.parent if place.name == "__init__.py" else place
        if models.name != "models":  # a single model's own folder: quick, and hundreds of them
            return compute(module_path, prefix=prefix)
        try:
            identity = identities.get(models) or identities.setdefault(models, _identity(models))
        except OSError:  # a file that cannot be looked at
            return compute(module_path, prefix=prefix)
        file = kept / f"{identity}.json"
        with suppress(OSError, ValueError, TypeError, AttributeError):
            return _prefixed(_decode(file.read_text(encoding="utf-8")), prefix)
        structure = compute(str(models))
        _keep(file, structure)
        return _prefixed(structure, prefix)

    return define_import_structure


def _identity(models: Path) -> str:
    """What the answer depends on: the installed version (by its `__init__.py`), the place, which folders there are, and
    where files may be edited, each of them.

    Times are cut to seconds where they may be those of an image's layer, which keeps no more.
    """
    init = (models.parent / "__init__.py").stat()
    parts = [
        str(models),
        init.st_size,
        int(init.st_mtime),
        int(models.stat().st_mtime),
        sorted(path.name for path in models.iterdir() if path.name != "__pycache__"),
        [] if _is_as_installed(models) else sorted(_files(str(models))),
    ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _is_as_installed(models: Path) -> bool:
    """Whether its files need not be looked at: somebody chose the folder of memos for an installation, as images do."""
    return bool(os.environ.get(layout.ENV_MEMO)) and not _INSTALLED.isdisjoint(models.parts)


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, size and time of each source."""
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.endswith(".py"):
                status = entry.stat()
                yield entry.path, status.st_size, status.st_mtime_ns
            elif entry.name != "__pycache__" and entry.is_dir():
                yield from _files(entry.path)


def _prefixed(structure: Structure, prefix: str | None) -> Structure:
    if prefix is None:
        return structure
    return {
        backends: {f"{prefix}.{module}": names for module, names in modules.items()}
        for backends, modules in structure.items()
    }


def _decode(text: str) -> Structure:
    return {
        frozenset(backends): {module: set(names) for module, names in modules.items()}
        for backends, modules in json.loads(text)
    }


def _keep(file: Path, structure: Structure) -> None:
    """Write it for the next start; a read-only or full disk only means that the next start computes it again."""
    document = [
        [sorted(backends), {module: sorted(names) for module, names in modules.items()}]
        for backends, modules in structure.items()
    ]
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{file.name}.", dir=file.parent)
        with os.fdopen(handle, "w", encoding="utf-8") as target:
            json.dump(document, target, separators=(",", ":"))
        Path(name).chmod(0o644)
        Path(name).replace(file)
    except OSError as error:
        logger.debug("%s: not kept: %s", file, error)
