"""What decides the bytes of a baked model besides its recipe: the key under which the build cache keeps it.

A recipe names the checkpoint, the declaration and the converter's version. The same recipe gives other bytes with
another torch or transformers, with the project's factory changed, or with a changed converter of the same version in a
checkout. All of that is in the key, and more than one model needs: a key that is too narrow would give a wrong model,
one that is too wide bakes again.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from importlib.machinery import PathFinder
from importlib.metadata import PackageNotFoundError, entry_points, packages_distributions, version
from importlib.util import find_spec
from pathlib import Path

from prebake import errors
from prebake.documents.table import canonical_json
from prebake.families.family import GROUP, IN_THE_BOX
from prebake_build.baking.isolation import ENV_PASSED
from prebake_build.baking.own_code import files_of, imports_of
from prebake_build.declared.spec import ModelSpec
from prebake_build.files.digest import sha256_of

FORMAT = 1
RUNTIME = ("__init__.py", "errors.py", "cgroup.py", "documents", "baked", "weights", "modules", "families", "tiers")
BUILD = ("__init__.py", "files", "upstream", "dummies", "sources", "cache", "families", "declared", "baking")
"""The rooms that decide bytes: `converter-source` in this repository's workspace.Dockerfile copies the same."""
PACKAGES = (
    "accelerate", "bitsandbytes", "compressed-tensors", "diffusers", "easyocr", "huggingface-hub", "kernels", "numpy",
    "open-clip-torch", "opencv-python-headless", "optimum", "peft", "pillow", "protobuf", "python-bidi", "safetensors",
    "scipy", "sentence-transformers", "sentencepiece", "tiktoken", "timm", "tokenizers", "torch", "torchao",
    "torchvision", "transformers",
)  # fmt: skip
"""What the families' ordinary loads import, where it is installed. Whether it is there decides too: transformers takes
other paths with it."""

DIGEST = "sha256:"
"""How the digest of own code begins, which stands in the place of a version."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Environment:
    """The key of a model's conversion, and the versions in it."""

    key: str
    """32 hexadecimal digits."""
    versions: dict[str, str]
    """Package → version; own code has a digest in place of a version."""

    def covers(self, requires: Mapping[str, str]) -> bool:
        """Whether every package that a manifest requires is in the key."""
        return all(_normal(package) in self.versions for package in requires)


def environment_of(model: ModelSpec, recipe: str) -> Environment | None:
    """The environment of a model's bake on this machine; None if what its code consists of can't be told."""
    code = code_of(model)
    if code is None:
        return None
    versions = {name: found for name in PACKAGES if (found := _version(name)) is not None} | code
    passed = sorted(name for text in os.environ.get(ENV_PASSED, "").split(",") if (name := text.strip()))
    document = {
        "format": FORMAT,
        "recipe": recipe,
        "converter": _converter(),
        "versions": versions,
        "python": ".".join(platform.python_version_tuple()[:2]),
        "machine": platform.machine(),
        "variables": {name: os.environ.get(name) for name in passed},
    }
    return Environment(key=hashlib.sha256(canonical_json(document).encode()).hexdigest()[:32], versions=versions)


def code_of(model: ModelSpec) -> dict[str, str] | None:
    """Package → version, or digest, of the code that one model needs besides the families in the box.

    That is a factory's, and that of another distribution's family. None if it is not found.
    """
    found: dict[str, str] = {}
    try:
        for module in _modules_of(model):
            found |= _own(module)
    except _UnknownCodeError:
        return None
    return found


class _UnknownCodeError(Exception):
    """Code that decides the bytes was not found."""


def _modules_of(model: ModelSpec) -> Iterator[str]:
    if model.family == "torch" and model.class_:
        yield model.class_.partition(":")[0]
    elif model.family is not None and model.family not in IN_THE_BOX:
        found = [entry.value for entry in entry_points(group=GROUP) if entry.name == model.family]
        if not found:
            raise _UnknownCodeError
        yield found[0].partition(":")[0]


def _own(module: str) -> dict[str, str]:
    """The module's top-level package, and what that imports if it is own code: its version, or the digest of its files.

    Own code is everything outside of `site-packages`: the project, checkouts that are installed as editable.
    """
    pending, seen, found = [module.partition(".")[0]], set[str](), dict[str, str]()
    while pending:
        name = pending.pop()
        if name in seen or name in sys.stdlib_module_names or name in ("prebake", "prebake_build"):
            continue
        seen.add(name)
        path = _find(name)
        if path is None:
            if name == module.partition(".")[0]:
                raise _UnknownCodeError
            continue  # an import that is optional, or for another system
        if {"site-packages", "dist-packages"} & set(path.parts):
            distributions = _distributions().get(name, ())
            found |= {_normal(distribution): version(distribution) for distribution in distributions}
            if not distributions:
                found[_normal(name)] = _digest([path])
        else:
            found[_normal(name)] = _digest([path])
            pending += sorted({imported for file in files_of(path) for imported in imports_of(file)})
    return found


def _find(name: str) -> Path | None:
    """The folder or file of a top-level module, as the worker would find it: it also has the current folder."""
    variable = filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))
    spec = PathFinder.find_spec(name, [os.getcwd(), *variable, *sys.path])  # noqa: PTH109
    try:
        spec = spec or find_spec(name)  # finders of editable installs
    except ValueError:  # a module without a spec, such as __main__
        return None
    if spec is None:
        return None
    if spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(spec.origin) if spec.origin and Path(spec.origin).is_file() else None


@lru_cache(maxsize=1)
def _distributions() -> Mapping[str, list[str]]:
    return packages_distributions()


@lru_cache(maxsize=1)
def _converter() -> str:
    """The digest of what converts: the modules below the line, of whatever version they say they are."""
    runtime, build = Path(errors.__file__).parent, Path(__file__).parents[1]
    return _digest([*(runtime / room for room in RUNTIME), *(build / room for room in BUILD)])


def _digest(places: list[Path]) -> str:
    digest = hashlib.sha256()
    for place in places:
        paths = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
        for path in paths:
            if "__pycache__" not in path.parts and path.suffix != ".pyc":
                # a package may have weights beside its code: never the whole file in memory
                digest.update(f"{place.name}/{path.relative_to(place)}\n{sha256_of(path)}\n".encode())
    return DIGEST + digest.hexdigest()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _normal(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
