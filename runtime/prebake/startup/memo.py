"""Caches a result that transformers otherwise computes from its own files at every start.

`import transformers` reads its 1,600 model files to find which file defines which class (0.2 s of a warm start). The
result depends only on those files, so it is cached as JSON: in the image, written at build, or in the user's cache. A
finder wraps the one function that computes it; no file of the package is changed. `PREBAKE_MEMO` names the folder; an
empty value turns it off.

If `PREBAKE_MEMO` is set, files in `site-packages` are assumed unchanged since installation, as in an image layer. In
all other cases, the size and time of each file are checked (4 to 25 ms for 2,500 files), so edits are detected.
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
"""Backends that a class needs → module → its public names: the input of transformers' `_LazyModule`."""


def folder() -> Path | None:
    """The cache folder; None if `PREBAKE_MEMO` is empty, or it is unset and the user has no home directory.

    Does not use platformdirs, because its import would cost part of the time that the cache saves.
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
    """Cache the function's result from now on. Does nothing if the module is already imported. Safe to call again."""
    if _MODULE in sys.modules or any(isinstance(finder, _Finder) for finder in sys.meta_path):
        return
    if (kept := folder()) is not None:
        sys.meta_path.insert(0, _Finder(kept))


class _Finder(MetaPathFinder):
    """Finds this one module as usual, and wraps its loader."""

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
    """The module's own loader, which then wraps the function with the cache."""

    def __init__(self, loader: Loader, kept: Path) -> None:
        self._loader, self._kept = loader, kept

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        if hasattr(module, _FUNCTION):
            setattr(module, _FUNCTION, _remembering(getattr(module, _FUNCTION), self._kept))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)  # get_source and others, for code that inspects modules


def _remembering(compute: Callable[..., Structure], kept: Path) -> Callable[..., Structure]:
    # an import calls it twice for the same folder: `transformers` with a prefix, `transformers.models` without
    identities: dict[Path, str] = {}

    @functools.wraps(compute)
    def define_import_structure(module_path: str, prefix: str | None = None) -> Structure:
        place = Path(module_path)
        models = place.parent if place.name == "__init__.py" else place
        if models.name != "models":  # the folder of a single model: fast, and there are hundreds
            return compute(module_path, prefix=prefix)
        try:
            identity = identities.get(models) or identities.setdefault(models, _identity(models))
        except OSError:  # a file that can't be examined
            return compute(module_path, prefix=prefix)
        file = kept / f"{identity}.json"
        with suppress(OSError, ValueError, TypeError, AttributeError):
            return _prefixed(_decode(file.read_text(encoding="utf-8")), prefix)
        structure = compute(str(models))
        _keep(file, structure)
        return _prefixed(structure, prefix)

    return define_import_structure


def _identity(models: Path) -> str:
    """The cache key: the installed version (from its `__init__.py`), the path, the names of the folders, and, where
    files may be edited, the size and time of each file.

    Times that may come from an image layer are truncated to seconds, because layers store no fractions.
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
    """Whether the files can be assumed unchanged: they are installed, and `PREBAKE_MEMO` is set, as in an image."""
    return bool(os.environ.get(layout.ENV_MEMO)) and not _INSTALLED.isdisjoint(models.parts)


def _files(folder: str) -> Iterator[tuple[str, int, int]]:
    """Path, size and modification time of each source file."""
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
    """Write it for the next start. If the disk is read-only or full, the next start computes it again."""
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
