"""sentence-transformers: `SentenceTransformer(…)`.

The library's own constructor runs with the arguments that the user passed, and reads its small files from the view. It
gets the mapped networks where it would load them, so names, prompts, devices and model cards are what they always are.
Read from 6.2.

A model that was baked as a bare network of transformers (a repository without `modules.json`), and every
`CrossEncoder`, is served by the hook of transformers.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prebake.adopt import redirect
from prebake.adopt.hooks import from_hub
from prebake.adopt.loads import Load, inside
from prebake.baked import hub

if TYPE_CHECKING:
    from prebake.baked.model import BakedModel

FAMILY = "sentence-transformers"
_MODULES = "modules.json"


def install(module: ModuleType) -> None:
    """Replace the constructor of `SentenceTransformer`."""
    cls = module.SentenceTransformer
    original = cls.__init__
    if hasattr(original, "_prebake"):
        return

    @functools.wraps(original)
    def construct(self: Any, model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> None:
        name = model_name_or_path
        if not name or not redirect.applies():
            original(self, name, *args, **kwargs)
        else:
            _served(original, self, name, args, kwargs)

    construct._prebake = True  # type: ignore[attr-defined]
    cls.__init__ = construct


def _served(original: Any, self: Any, name: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    load = Load(
        library="sentence_transformers",
        function="SentenceTransformer",
        uri=_uri(self, name, kwargs.get("revision")),
        class_=f"{FAMILY}:SentenceTransformer",
        obstacle=_obstacle(kwargs),
    )
    baked = redirect.find(load)
    if baked is not None and baked.manifest.family != FAMILY:
        original(self, name, *args, **kwargs)  # its network is loaded through transformers, and served there
        return
    before = dict(vars(self))

    def by_itself(baked: BakedModel) -> None:
        _restore(self, before)
        with inside(view=True):
            original(self, from_hub.name_for(baked, name), *args, **kwargs)

    redirect.serve(
        load,
        baked=baked,
        mapped=lambda baked: _mapped(original, self, baked, name, args, kwargs),
        folder=by_itself,
        original=lambda: original(self, name, *args, **kwargs),
        complete=lambda load, _: _completed(load, self, name, kwargs),
    )


def _uri(self: Any, name: Any, revision: Any) -> str | None:
    """The source; a name without an owner is one of the library's own models, except for a few older ones."""
    if not isinstance(name, str) or "/" in name or os.path.exists(name):  # noqa: PTH110
        return from_hub.uri_of(name, revision)
    owner = getattr(self, "default_huggingface_organization", "sentence-transformers")
    return from_hub.repo_uri(f"{owner}/{name}", revision)


def _obstacle(kwargs: Mapping[str, Any]) -> str | None:
    """Why a model that is loaded this way cannot be baked."""
    if kwargs.get("backend", "torch") != "torch":
        return f"backend {kwargs['backend']}"
    if redirect.observing() and (kwargs.get("model_kwargs") or {}).get("quantization_config"):
        return "quantisation at load"
    return None


def _completed(load: Load, self: Any, name: Any, kwargs: Mapping[str, Any]) -> Load:
    """The load with its commit and dtype. Without `modules.json`, what can be baked is its network."""
    dtype = str(self.dtype).removeprefix("torch.")
    file = "config.json" if (bare := not _has_modules(load, name, kwargs)) else _MODULES
    uri = from_hub.pinned(load.uri, kwargs.get("cache_folder"), file)
    network = getattr(self, "transformers_model", None)
    class_ = f"transformers:{type(network).__name__}" if bare and network is not None else load.class_
    remote = any(type(part).__module__.startswith("transformers_modules") for part in self.modules())
    return replace(load, uri=uri, dtype=dtype, class_=class_, obstacle="remote code" if remote else load.obstacle)


def _has_modules(load: Load, name: Any, kwargs: Mapping[str, Any]) -> bool:
    from sentence_transformers.util import is_sentence_transformer_model

    uri = str(load.uri)
    is_folder = Path(name).is_dir()  # perhaps the copy of a repository
    path, revision = hub.split(uri) if uri.startswith(hub.URI) and not is_folder else (str(name), None)
    with inside():
        return bool(
            is_sentence_transformer_model(
                path, cache_folder=kwargs.get("cache_folder"), revision=revision, local_files_only=True
            )
        )


def _mapped(
    original: Any, self: Any, baked: BakedModel, name: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> None:
    from prebake.families.construction import loaded_by
    from prebake.families.sentence_transformers import others

    module: Any = redirect.module_of(baked)
    paths = list(baked.manifest.options["networks"])
    waiting = [module.get_submodule(path) for path in paths]

    def make(cls: Any, path: str, given: Mapping[str, Any]) -> Any:
        if not waiting:
            raise redirect.NotMappedError("it loads more networks than were baked")
        return _network(waiting.pop(0), cls, baked, path, given)

    made: list[Any] = []
    with inside(view=True), loaded_by(make, made):
        original(self, from_hub.name_for(baked, name), *args, **kwargs)
    found = {id(part): path for path, part in self.named_modules()}
    if waiting or [found.get(id(part)) for part in made] != paths:
        raise redirect.NotMappedError("its networks are not those that were baked")
    for path, part in others(self, dict(zip(paths, made, strict=True))).items():
        baked_part = module.get_submodule(path).to(device=self.device, dtype=_dtype_of(part))
        self._modules[path] = baked_part.train(part.training)


def _network(model: Any, cls: Any, baked: BakedModel, name: str, given: Mapping[str, Any]) -> Any:
    """The mapped network for one call of `from_pretrained`, under the name that the call has."""
    from prebake.adopt.hooks.transformers import other_key, rename, take_at_run, unfit_arguments

    if type(model) is not cls:
        raise redirect.NotMappedError(f"it loads a {cls.__name__}, and {type(model).__name__} was baked")
    config = given.get("config")
    if config is not None and (other := other_key(config, model.config)):
        raise redirect.NotMappedError(f"a configuration with another {other}")
    left = {key: value for key, value in given.items() if key != "config"}
    if (unfit := unfit_arguments(cls, baked, left)) is not None:
        raise redirect.NotMappedError(unfit)
    asked = given.get("attn_implementation") or getattr(config, "_attn_implementation_internal", None)
    if asked is not None and asked != model.config._attn_implementation:
        raise redirect.NotMappedError(f"attn_implementation={asked!r}")
    take_at_run(model.config, config)
    rename(model, str(name), hub.commit_of(baked) if hub.repo_of(baked) == name else None)
    return model


def _dtype_of(part: Any) -> Any:
    return next(iter(part.state_dict().values())).dtype


def _restore(self: Any, before: Mapping[str, Any]) -> None:
    """Undo what a constructor that failed has set."""
    vars(self).clear()
    vars(self).update(before)
