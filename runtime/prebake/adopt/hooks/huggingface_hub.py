"""huggingface_hub: downloads of baked repositories are answered from the view, without a network.

Libraries read configurations, tokenizers and processors through these functions, so they get those of the baked model,
under the name that the user passed. Read from 0.36 and 2.4.

A file that the view lacks does not exist for a library that looks for optional files, as offline. Code of the
application that asks for it by name gets it from the hub, as without Prebake. A file that was baked as `tensors` is
the baked one: `torch.load` and `safetensors.torch.load_file` of it return what upstream's file holds (`hooks.torch`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prebake.adopt import copies, redirect
from prebake.adopt.catalogue import catalogue
from prebake.adopt.hooks import from_hub
from prebake.adopt.loads import Load, is_inside, reads_view
from prebake.adopt.view import process_view
from prebake.baked import hub
from prebake.baked.hub import TENSORS

if TYPE_CHECKING:
    from prebake.baked.model import BakedModel

Function = Callable[..., Any]

LIBRARIES = frozenset({
    "accelerate", "diffusers", "huggingface_hub", "open_clip", "peft", "sentence_transformers", "timm", "tokenizers",
    "transformers",
})  # fmt: skip
"""Packages whose downloads are steps of their own loads."""


def install(module: ModuleType) -> None:
    """Replace the functions of one of the three modules, once it is imported."""
    name = module.__name__.rpartition(".")[2]
    if name == "file_download":
        _replace(module, "hf_hub_download", _hf_hub_download)
        _replace(module, "try_to_load_from_cache", _from_view)
    elif name == "_snapshot_download":
        _replace(module, "snapshot_download", _snapshot_download)
        vars(module)["hf_hub_download"] = _original(module.hf_hub_download)  # its own steps
    else:
        if hasattr(module.HfApi, "resolve_revision"):  # since 1
            _replace(module.HfApi, "resolve_revision", _from_view)
        _replace(module.HfApi, "list_repo_tree", _list_repo_tree)
        vars(module)["list_repo_tree"] = module.api.list_repo_tree  # the function of this name


def _replace(place: Any, name: str, wrap: Callable[[Function, inspect.Signature], Function]) -> None:
    original = getattr(place, name)
    if not hasattr(original, "_prebake"):
        wrapped: Any = functools.wraps(original)(wrap(original, inspect.signature(original)))
        wrapped._prebake = original
        setattr(place, name, wrapped)


def _original(function: Any) -> Any:
    return getattr(function, "_prebake", function)


def _hf_hub_download(original: Function, signature: inspect.Signature) -> Function:
    def hf_hub_download(*args: Any, **kwargs: Any) -> Any:
        asked = _Asked.of(signature, args, kwargs)
        if asked is None or (is_inside() and not reads_view()):
            return original(*args, **kwargs)
        file = "/".join(part for part in (asked.arguments.get("subfolder"), asked.arguments.get("filename")) if part)
        asking = _asking()
        if is_inside() or asking in LIBRARIES:
            return asked.by_library(asking, original, args, kwargs)
        baked = asked.tensors(file) or (asked.baked if asked.has(file) else None)
        return redirect.serve(
            Load(library="huggingface_hub", function="hf_hub_download", uri=asked.uri, detail={"file": file},
                 reason=_lacks(file) if (asked.baked or asked.single) is not None and baked is None else None),
            baked=baked,
            folder=lambda baked: asked.file(original, baked, file),
            original=lambda: original(*args, **kwargs),
            complete=asked.completed,
        )  # fmt: skip

    return hf_hub_download


def _snapshot_download(original: Function, signature: inspect.Signature) -> Function:
    def snapshot_download(*args: Any, **kwargs: Any) -> Any:
        asked = _Asked.of(signature, args, kwargs)
        if asked is None or (is_inside() and not reads_view()):
            return original(*args, **kwargs)
        asking = _asking()
        if is_inside() or asking in LIBRARIES:
            return asked.by_library(asking, original, args, kwargs)
        return redirect.serve(
            Load(library="huggingface_hub", function="snapshot_download", uri=asked.uri),
            baked=asked.whole,
            folder=lambda baked: asked.tree(original, baked),
            original=lambda: original(*args, **kwargs),
            complete=asked.completed,
        )

    return snapshot_download


def _from_view(original: Function, signature: inspect.Signature) -> Function:
    """For functions that only look at the cache, or would rather not: they look at the view."""

    def from_view(*args: Any, **kwargs: Any) -> Any:
        asked = None if is_inside() and not reads_view() else _Asked.of(signature, args, kwargs)
        return original(*args, **kwargs) if asked is None or asked.baked is None else asked.call(original)

    return from_view


def _list_repo_tree(original: Function, signature: inspect.Signature) -> Function:
    """Libraries look for optional files in this list; the application gets the hub's."""

    def list_repo_tree(*args: Any, **kwargs: Any) -> Any:
        asked = None if is_inside() and not reads_view() else _Asked.of(signature, args, kwargs)
        if asked is None or asked.baked is None or _asking() not in LIBRARIES:
            return original(*args, **kwargs)
        from huggingface_hub.hf_api import RepoFile

        folder = asked.arguments.get("path_in_repo")
        start, deep = f"{folder}/" if folder else "", asked.arguments.get("recursive")
        return [
            RepoFile(path=file.path, size=file.size, oid="")  # type: ignore[no-untyped-call]
            for file in asked.baked.manifest.files
            if file.path.startswith(start) and (deep or "/" not in file.path[len(start) :])
        ]

    return list_repo_tree


def _asking() -> str:
    """The package that asks huggingface_hub for something, perhaps through another of its functions."""
    depth = 2
    while (package := redirect.caller(depth)) == "huggingface_hub":
        depth += 1
    return package


class _Asked:
    """A call for a model's repository."""

    def __init__(self, arguments: dict[str, Any], accepts: Mapping[str, object]) -> None:
        self.arguments = arguments
        self._accepts = accepts
        self.uri = from_hub.repo_uri(arguments["repo_id"], arguments.get("revision"))
        self.baked: BakedModel | None = None
        """The network of the repository; its other files are in the view too."""
        self.single: BakedModel | None = None
        """A single file of the repository, if no network of it is baked."""
        self.view: Path | None = None
        if self.uri is not None and not redirect.observing() and (baked := catalogue().find(self.uri)) is not None:
            self.view = process_view()
            if self.view is not None and hub.commit_of(baked):
                is_single = baked.manifest.family == TENSORS
                self.baked, self.single = (None, baked) if is_single else (baked, None)

    @classmethod
    def of(cls, signature: inspect.Signature, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Asked | None:
        """None for other kinds of repositories, and calls that do not fit the function."""
        try:
            bound = dict(signature.bind_partial(*args).arguments)
        except TypeError:
            return None
        bound.update(kwargs)  # also those that the function accepts no more, and ignores
        if bound.get("repo_type") not in (None, "model") or bound.get("dry_run") or "repo_id" not in bound:
            return None
        return cls(bound, signature.parameters)

    @property
    def whole(self) -> BakedModel | None:
        """What stands for the whole repository: a network; a single file only where the hub is not to be asked."""
        from huggingface_hub import constants

        offline = constants.HF_HUB_OFFLINE or self.arguments.get("local_files_only")
        return self.single if self.single is not None and offline else self.baked

    def has(self, file: str) -> bool:
        """Whether the view has this file of upstream."""
        return self.baked is not None and (_snapshot(self.baked) / file).is_file()

    def tensors(self, file: str) -> BakedModel | None:
        """The model that was baked from this file alone; None if the caller wants a copy, and none can be written."""
        if self.uri is None or redirect.observing():
            return None
        found = catalogue().file_of(self.uri, file)
        if found is None or not found.weights:
            return None
        return None if self.local_dir is not None and not copies.can_write(found, file) else found

    def by_library(self, library: str, original: Function, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """A step of a library's own load: from the view, or from the hub as without Prebake."""
        if self.baked is not None:
            return self.call(original)
        try:
            return original(*args, **kwargs)
        except Exception as error:
            if not is_inside() and self._is_missing(error):
                redirect.missing(Load(library=library, function=original.__name__, uri=self.uri), error)
            raise

    def _is_missing(self, error: Exception) -> bool:
        """Whether the error is about the whole repository: it may lack files that a library only looks for."""
        from huggingface_hub import constants, errors

        if self.uri is None or str(hub.split(self.uri)[1]).startswith("refs/"):  # a conversion that may exist
            return False
        if isinstance(error, (errors.RepositoryNotFoundError, errors.RevisionNotFoundError)):
            return True
        repo, revision = hub.split(self.uri)
        place = Path(self.arguments.get("cache_dir") or constants.HF_HUB_CACHE) / hub.folder_of(repo)
        cached = any((place / below / (revision or hub.DEFAULT_BRANCH)).exists() for below in ("refs", "snapshots"))
        return isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)) and not cached

    def call(self, original: Function) -> Any:
        """The library's function on the view: offline, at the commit that was baked."""
        changed: dict[str, Any] = {"cache_dir": str(self.view), "local_files_only": True, "force_download": False}
        given = {key: value for key, value in self.arguments.items() if key not in ("self", "local_dir")}
        first = [self.arguments["self"]] if "self" in self.arguments else []
        return original(*first, **given | {key: value for key, value in changed.items() if key in self._accepts})

    @property
    def local_dir(self) -> Path | None:
        """The folder in which the caller wants copies."""
        given = self.arguments.get("local_dir")
        return None if given is None else Path(given)

    def file(self, original: Function, baked: BakedModel, file: str) -> Any:
        """One file of the view; of a single file, the baked one; or a copy in the caller's folder."""
        single = baked.manifest.family == TENSORS
        if self.local_dir is None:
            return str(baked.weights[0]) if single else self.call(original)
        if single:
            made = copies.write_file(baked, file, self.local_dir / file)
        else:
            made = copies.copy_file(_snapshot(baked) / file, self.local_dir / file)
        copies.note(self.local_dir, _pinned(baked), [file])
        return str(made)

    def tree(self, original: Function, baked: BakedModel) -> Any:
        """The view's folder of the commit, or its copy in the caller's folder."""
        if self.local_dir is None:
            return self.call(original)
        from huggingface_hub.utils import filter_repo_objects  # type: ignore[attr-defined]

        source, target = _snapshot(baked), self.local_dir
        alone = [each for each in catalogue().matches(_pinned(baked)) if each.manifest.family == TENSORS]
        single = {name: each for each in alone if (name := hub.single_file(each)) and self.tensors(name)}
        places = [each.folder.resolve() for each in alone]
        files = {path.relative_to(source).as_posix() for path in source.rglob("*")
                 if path.is_file() and path.resolve().parent not in places}  # fmt: skip
        patterns = {key: self.arguments.get(key) for key in ("allow_patterns", "ignore_patterns")}
        wanted = sorted(filter_repo_objects(files | single.keys(), **patterns))
        for file in wanted:
            if file in single:
                copies.write_file(single[file], file, target / file)
            else:
                copies.copy_file(source / file, target / file)
        copies.note(target, _pinned(baked), wanted, whole=set(wanted) == files | single.keys())
        return str(target.resolve())

    def completed(self, load: Load, result: object) -> Load:
        """The load with the commit that was downloaded."""
        if self.local_dir is None or self.uri is None:
            return from_hub.completed(load, result)
        return replace(load, uri=copies.note_downloaded(self.local_dir, self.uri))


def _snapshot(baked: BakedModel) -> Path:
    """The view's folder of the model's commit."""
    return from_hub.snapshot_of(baked) or baked.folder


def _pinned(baked: BakedModel) -> str:
    return f"{hub.URI}{hub.repo_of(baked)}@{hub.commit_of(baked)}"


_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def _lacks(file: str) -> str:
    way = f': declare it too, with class = "tensors" and file = "{file}"' if file.endswith(_WEIGHTS) else ""
    return f"the baked model has no {file}{way}"
