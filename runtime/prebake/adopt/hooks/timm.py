"""timm: `create_model(…, pretrained=True)`.

The library builds the model from the arguments of the user, on the meta device, and gets the mapped tensors. So
configurations, and what else `create_model` sets on a model, are as always. Arguments that change the network must be
those that were baked. Read from 1.0.31.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prebake.adopt import redirect
from prebake.adopt.catalogue import PATH
from prebake.adopt.hooks import from_hub
from prebake.adopt.loads import Load, inside

if TYPE_CHECKING:
    from prebake.baked.model import BakedModel

FAMILY = "timm"
_HUB = ("hf-hub:", "hf_hub:")
_LOCAL = "local-dir:"
_SOURCES = ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path")
"""Arguments that name other weights."""
_FORMS = ("scriptable", "exportable", "no_jit")
"""Arguments that choose other layers."""


def install(module: ModuleType) -> None:
    """Replace `create_model` of `timm.models._factory`, before other modules of timm take it from there."""
    original = module.create_model
    if hasattr(original, "_prebake"):
        return

    @functools.wraps(original)
    def create_model(model_name: Any, pretrained: Any = False, *args: Any, **kwargs: Any) -> Any:
        if not pretrained or args or not isinstance(model_name, str) or not redirect.applies():
            return original(model_name, pretrained, *args, **kwargs)
        return _served(original, model_name, kwargs)

    create_model._prebake = original  # type: ignore[attr-defined]
    module.create_model = create_model  # type: ignore[attr-defined]


def _served(original: Any, name: str, kwargs: dict[str, Any]) -> Any:
    load = _described(name, kwargs)
    baked, unfit = redirect.choose(load, lambda baked: _unfit(baked, kwargs))
    if baked is not None and baked.manifest.family != FAMILY:
        baked = None
    return redirect.serve(
        load,
        baked=baked,
        unfit=unfit,
        mapped=lambda baked: _mapped(original, name, baked, kwargs),
        folder=lambda baked: _on_folder(original, name, baked, kwargs),
        original=lambda: original(name, True, **kwargs),
        complete=lambda load, result: _completed(load, result, kwargs),
    )


def _described(name: str, kwargs: Mapping[str, Any]) -> Load:
    other = next((key for key in _SOURCES if kwargs.get(key)), None)
    arguments = _arguments(kwargs)
    return Load(
        library="timm",
        function="create_model",
        uri=None if other else _uri(name),
        class_=None if name.startswith((*_HUB, _LOCAL)) else f"{FAMILY}:{name}",
        dtype="float32",
        detail={"arguments": arguments} if arguments else {},
        reason=f"{other} names other weights" if other else None,
    )


def _arguments(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of the network; None is as good as left out."""
    own = (*_SOURCES, *_FORMS, "cache_dir")
    return {key: value for key, value in kwargs.items() if value is not None and key not in own}


def _uri(name: str) -> str | None:
    """Where the weights of this name come from, in the order in which timm looks."""
    for prefix in _HUB:
        if name.startswith(prefix):
            repo, _, revision = name.removeprefix(prefix).partition("@")
            return from_hub.repo_uri(repo, revision or None)
    if name.startswith(_LOCAL):
        return PATH + name.removeprefix(_LOCAL)
    from timm.models import get_pretrained_cfg

    config = get_pretrained_cfg(name, allow_unregistered=True)
    if config is None or config.file:
        return PATH + str(config.file) if config is not None and config.file else None
    if config.hf_hub_id:
        return from_hub.repo_uri(config.hf_hub_id)
    return f"url:{config.url}" if config.url else None


def _completed(load: Load, model: Any, kwargs: Mapping[str, Any]) -> Load:
    """The load with its commit, and with the architecture and the tag that were loaded."""
    config = model.pretrained_cfg
    tagged = ".".join(part for part in (config.get("architecture"), config.get("tag")) if part)
    uri = load.uri
    for file in ("config.json", "model.safetensors", "pytorch_model.bin"):
        if uri is not None and "@" not in uri:
            uri = from_hub.pinned(uri, kwargs.get("cache_dir"), file)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return replace(load, uri=uri, class_=f"{FAMILY}:{tagged}" if tagged else load.class_, dtype=dtype)


def _unfit(baked: BakedModel, kwargs: Mapping[str, Any]) -> str | None:
    """Why the map cannot serve this call, or None."""
    if baked.manifest.family != FAMILY:
        return f"it was baked as {baked.manifest.family}:{baked.manifest.class_}"
    for key in _FORMS:
        if kwargs.get(key) is not None:
            return f"{key}={kwargs[key]!r}"
    asked, have = _arguments(kwargs), dict(baked.manifest.options.get("arguments", {}))
    for key in sorted({*asked, *have}):
        if asked.get(key) != have.get(key):
            return f"{key}={asked.get(key)!r}, and {have.get(key)!r} was baked"
    if baked.manifest.options.get("dtype") not in (None, "float32"):
        return f"dtype {baked.manifest.options['dtype']} was baked"
    return None


def _mapped(original: Any, name: str, baked: BakedModel, kwargs: Mapping[str, Any]) -> Any:
    from prebake.modules.skeleton import without_values

    values: Any = redirect.module_of(baked)
    with inside(view=True):
        model: Any = without_values(lambda: original(name, False, **kwargs))
    given = dict(values.named_modules())
    if {path: type(part) for path, part in model.named_modules()} != {path: type(p) for path, p in given.items()}:
        raise redirect.NotMappedError("its layers are not those that were baked")
    for path, part in model.named_modules():
        if (
            part._parameters.keys() != given[path]._parameters.keys()
            or part._buffers.keys() != given[path]._buffers.keys()
        ):
            raise redirect.NotMappedError(f"{path or 'the model'} has other tensors than were baked")
        for key, parameter in given[path]._parameters.items():
            if parameter is not None:
                part._parameters[key] = parameter.requires_grad_(part._parameters[key].requires_grad)
        part._buffers.update(given[path]._buffers)
    return model


def _on_folder(original: Any, name: str, baked: BakedModel, kwargs: Mapping[str, Any]) -> Any:
    """The library's function on the baked weights."""
    files = [baked.folder / file for file in baked.manifest.weights.files]
    overlay: dict[str, Any] = {"file": str(files[0])}
    if len(files) > 1:  # the library knows no shards
        from prebake.weights.tensors import map_tensors

        overlay = {"state_dict": {name: tensor for file in files for name, tensor in map_tensors(file).items()}}
    with inside(view=True):
        return original(name, True, **{**kwargs, "pretrained_cfg_overlay": overlay})
