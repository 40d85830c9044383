"""diffusers: `DiffusionPipeline.from_pretrained` with its subclasses, and `ModelMixin.from_pretrained`.

The library's own function runs with the arguments that the user passed, and reads its small files from the view. It
gets the mapped networks as components, which it takes in place of those it would load. So any pipeline class that uses
these components is served, whichever was baked. A single network (`subfolder="vae"`) is taken out of its baked
pipeline. Read from 0.42.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prebake.adopt import redirect
from prebake.adopt.hooks import from_hub
from prebake.adopt.loads import Load, inside

if TYPE_CHECKING:
    from pathlib import Path

    from prebake.baked.model import BakedModel

FAMILY = "diffusers"
_INDEX = "model_index.json"

_HARMLESS = frozenset({
    "cache_dir", "disable_mmap", "force_download", "local_files_only", "low_cpu_mem_usage", "mirror",
    "offload_folder", "offload_state_dict", "proxies", "resume_download", "revision", "subfolder", "token",
    "trust_remote_code", "use_safetensors", "variant",
})  # fmt: skip
"""Where the files come from, and how they are read: the result is the same with any value."""
_DTYPES = ("dtype", "torch_dtype")
_CHANGING = ("custom_pipeline", "device_map", "from_flax", "load_connected_pipeline", "max_memory",
             "output_loading_info", "provider", "provider_options", "quantization_config", "sess_options",
             "use_flashpack", "use_onnx")  # fmt: skip
"""Change the result, or what it is made of."""


def install(module: ModuleType) -> None:
    """Replace `from_pretrained` of the class that the module defines."""
    if module.__name__.endswith("pipeline_utils"):
        _replace(module.DiffusionPipeline, _pipeline)
    else:
        _replace(module.ModelMixin, _network)


def _replace(cls: Any, serve: Any) -> None:
    original = cls.__dict__["from_pretrained"].__func__
    if hasattr(original, "_prebake"):
        return

    @functools.wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        name = pretrained_model_name_or_path
        if name is None or args or not redirect.applies():
            return original(cls, name, *args, **kwargs)
        return serve(original, cls, name, kwargs)

    from_pretrained._prebake = True  # type: ignore[attr-defined]
    cls.from_pretrained = classmethod(from_pretrained)


# --- pipelines ---------------------------------------------------------------------------------------------------


def _pipeline(original: Any, cls: Any, name: Any, kwargs: dict[str, Any]) -> Any:
    named = cls.__name__ != "DiffusionPipeline"
    load = Load(
        library="diffusers",
        function=f"{cls.__name__}.from_pretrained",
        uri=from_hub.uri_of(name, kwargs.get("revision")),
        class_=f"{FAMILY}:{cls.__name__}" if named else None,
        detail={"variant": kwargs["variant"]} if kwargs.get("variant") else {},
        obstacle=_obstacle(kwargs),
    )
    baked = redirect.find(load)
    return redirect.serve(
        load,
        baked=baked,
        unfit=_unfit(baked, kwargs) if baked else None,
        mapped=lambda baked: _mapped(original, cls, baked, name, kwargs),
        folder=lambda baked: _on_view(original, cls, baked, name, kwargs),
        original=lambda: original(cls, name, **kwargs),
        complete=lambda load, result: _completed(load, result, kwargs),
    )


def _obstacle(kwargs: Mapping[str, Any]) -> str | None:
    """Why a model that is loaded this way cannot be baked."""
    if kwargs.get("custom_pipeline"):
        return "remote code"
    if redirect.observing() and kwargs.get("quantization_config") is not None:
        return "quantisation at load"
    return None


def _completed(load: Load, pipeline: Any, kwargs: Mapping[str, Any]) -> Load:
    """The load with the commit, the class that `model_index.json` names, and the dtype if all networks have one."""
    from torch import nn

    uri = from_hub.pinned(load.uri, kwargs.get("cache_dir"), _INDEX)
    parts = [part for part in pipeline.components.values() if isinstance(part, nn.Module)]
    dtypes = {str(getattr(part, "dtype", None)).removeprefix("torch.") for part in parts}
    remote = any(type(part).__module__.startswith("diffusers_modules") for part in (pipeline, *parts))
    return replace(
        load,
        uri=uri,
        class_=f"{FAMILY}:{type(pipeline).__name__}",
        dtype=dtypes.pop() if len(dtypes) == 1 else None,
        obstacle="remote code" if remote else load.obstacle,
    )


def _unfit(baked: BakedModel, kwargs: Mapping[str, Any]) -> str | None:
    """Why the map cannot serve this call, or None."""
    if baked.manifest.family != FAMILY:
        return f"it was baked as {baked.manifest.family}:{baked.manifest.class_}"
    for key in _CHANGING:
        if kwargs.get(key) is not None and kwargs[key] is not False:
            return f"{key}={_shown(kwargs[key])}"
    if (asked := kwargs.get("variant")) != baked.manifest.options.get("variant") and asked is not None:
        return f"variant={asked!r} is not what was baked"
    return None


def _mapped(original: Any, cls: Any, baked: BakedModel, name: Any, kwargs: Mapping[str, Any]) -> Any:
    parts = _parts(baked, kwargs)
    taken = _components(cls, baked)
    given = {key: part for key, part in parts.items() if key in taken and key not in kwargs}
    place = from_hub.snapshot_of(baked) or baked.folder
    for key, part in given.items():
        _rename(part, place / key)
    return _on_view(original, cls, baked, name, {**kwargs, **given})


def _on_view(original: Any, cls: Any, baked: BakedModel, name: Any, kwargs: Mapping[str, Any]) -> Any:
    """The library's own function on the view, which has one set of weights, in safetensors."""
    left = {key: value for key, value in kwargs.items() if key not in ("revision", "use_safetensors", "variant")}
    with inside(view=True):
        return original(cls, from_hub.name_for(baked, name), **left | {"local_files_only": True})


def _components(cls: Any, baked: BakedModel) -> set[str]:
    """Names of the components that the pipeline's constructor takes."""
    from prebake.families.diffusers import pipeline_class

    if cls.__name__ == "DiffusionPipeline":
        cls = pipeline_class(baked.manifest.class_, f"{baked.folder}: class")
    expected, optional = cls._get_signature_keys(cls)
    return {*expected, *optional}


def _parts(baked: BakedModel, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The mapped networks by their names. Raises NotMappedError if the call asks for another dtype."""
    module: Any = redirect.module_of(baked)
    asked = next((kwargs[key] for key in _DTYPES if kwargs.get(key) is not None), None)
    have = baked.manifest.options["dtypes"]
    for name, part in module.items():
        wanted = _wanted(asked, name, part)
        if wanted not in (None, have[name]):
            raise redirect.NotMappedError(f"dtype {wanted} of {name}, and {have[name]} was baked")
    return dict(module.items())


def _wanted(asked: Any, name: str, part: Any) -> str | None:
    """The dtype that the library would load a component with, or None for that of its checkpoint.

    Where the user names none, networks of diffusers are float32, and those of transformers as published.
    """
    import torch
    from diffusers import ModelMixin

    if isinstance(asked, dict):
        asked = asked.get(name, asked.get("default", torch.float32))
    if asked is None:
        asked = torch.float32 if isinstance(part, ModelMixin) else None
    elif not isinstance(asked, torch.dtype):
        asked = torch.float32  # as the library warns
    return None if asked is None else str(asked).removeprefix("torch.")


def _rename(part: Any, path: Path) -> None:
    """Give a component the path that the library would have loaded it from."""
    from diffusers import ModelMixin

    if isinstance(part, ModelMixin):
        part.register_to_config(_name_or_path=str(path))
        return
    from prebake.adopt.hooks.transformers import rename

    rename(part, str(path), None)


# --- networks ----------------------------------------------------------------------------------------------------


def _network(original: Any, cls: Any, name: Any, kwargs: dict[str, Any]) -> Any:
    subfolder = kwargs.get("subfolder") or ""
    load = Load(
        library="diffusers",
        function=f"{cls.__name__}.from_pretrained",
        uri=from_hub.uri_of(name, kwargs.get("revision")),
        class_=f"{FAMILY}:{cls.__name__}",
        detail={key: kwargs[key] for key in ("subfolder", "variant") if kwargs.get(key)},
        obstacle="a single network of diffusers: bake the pipeline that it is part of"
        if redirect.observing()
        else None,
    )
    baked = redirect.find(load)
    if baked is not None and baked.manifest.family != FAMILY:
        baked = None
    return redirect.serve(
        load,
        baked=baked,
        unfit=_unfit_network(baked, subfolder, kwargs) if baked else None,
        mapped=lambda baked: _one(cls, baked, name, subfolder, kwargs),
        folder=lambda baked: _on_view(original, cls, baked, name, kwargs),
        original=lambda: original(cls, name, **kwargs),
        complete=lambda load, result: replace(
            load,
            uri=from_hub.pinned(load.uri, kwargs.get("cache_dir"), "config.json", subfolder),
            dtype=str(result.dtype).removeprefix("torch."),
        ),
    )


def _unfit_network(baked: BakedModel, subfolder: str, kwargs: Mapping[str, Any]) -> str | None:
    if subfolder not in baked.manifest.options["dtypes"]:
        return f"subfolder={subfolder!r} is not one of its networks"
    known = _HARMLESS | {*_DTYPES}
    changed = [key for key, value in kwargs.items() if key not in known and value is not None and value is not False]
    return f"{changed[0]}={_shown(kwargs[changed[0]])}" if changed else _unfit(baked, kwargs)


def _one(cls: Any, baked: BakedModel, name: Any, subfolder: str, kwargs: Mapping[str, Any]) -> Any:
    part = _parts(baked, kwargs)[subfolder]
    if type(part) is not cls:
        raise redirect.NotMappedError(f"it is a {type(part).__name__}, not a {cls.__name__}")
    part.register_to_config(_name_or_path=str(name))
    return part


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}(…)"
