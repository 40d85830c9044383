"""transformers: `PreTrainedModel.from_pretrained`, which every `Auto…` class and `pipeline` call (4.57 and 5).

The map serves a call whose result does not depend on its arguments, or whose arguments say what was baked: the class,
the dtype, the configuration. Then the library's own functions set what belongs to the name the user passed: the
configuration's `name_or_path`, and the generation configuration. Read from `modeling_utils` of 4.57.6 and 5.23.0.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import TYPE_CHECKING, Any

from prebake.adopt import redirect
from prebake.adopt.catalogue import class_of
from prebake.adopt.hooks import from_hub
from prebake.adopt.loads import Load
from prebake.baked import hub

if TYPE_CHECKING:
    from prebake.baked.model import BakedModel

_HARMLESS = frozenset({
    "_commit_hash", "_fast_init", "_from_auto", "_from_pipeline", "cache_dir", "code_revision", "disable_mmap",
    "force_download", "local_files_only", "low_cpu_mem_usage", "max_memory", "mirror", "offload_buffers",
    "offload_folder", "offload_state_dict",
    "proxies", "resume_download", "revision", "token", "tqdm_class", "trust_remote_code", "use_auth_token",
    "use_safetensors", "weights_only",
})  # fmt: skip
"""Where the files come from, and how they are read: the result is the same with any value."""

_CHECKED = frozenset({"attn_implementation", "config", "device_map", "dtype", "torch_dtype"})
"""Must say what was baked."""

_SWITCHES = frozenset({
    "allow_all_kernels", "device_mesh", "distributed_config", "experts_implementation", "from_flax", "from_tf",
    "fusion_config", "generation_config", "gguf_file", "ignore_mismatched_sizes", "kernel_config", "key_mapping",
    "load_in_4bit", "load_in_8bit", "output_loading_info", "quantization_config", "state_dict", "subfolder", "tp_plan",
    "tp_size", "use_kernels",
})  # fmt: skip
"""Change the result, unless they are None, False or empty. All other arguments go to the configuration or to the
model's constructor, where these values mean something too."""

_QUANTISED = ("quantization_config", "load_in_8bit", "load_in_4bit")


def install(module: ModuleType) -> None:
    """Replace `from_pretrained` of `transformers.modeling_utils`."""
    cls = module.PreTrainedModel
    original = cls.__dict__["from_pretrained"].__func__
    if hasattr(original, "_prebake_hook"):  # `families.construction` marks a wrapper of its own with another name
        return

    @functools.wraps(original)
    def from_pretrained(cls: Any, pretrained_model_name_or_path: Any = None, *args: Any, **kwargs: Any) -> Any:
        name = pretrained_model_name_or_path
        if name is None or not redirect.applies():
            return original(cls, name, *args, **kwargs)
        return _served(original, cls, name, args, kwargs)

    from_pretrained._prebake_hook = True  # type: ignore[attr-defined]
    cls.from_pretrained = classmethod(from_pretrained)


def _served(original: Any, cls: Any, name: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    load = _described(cls, name, kwargs)
    baked, unfit = redirect.choose(load, lambda baked: _unfit(cls, baked, args, kwargs))
    if baked is not None and (other := _other_variant(baked, kwargs)):
        baked, load = None, replace(load, reason=other)
    return redirect.serve(
        load,
        baked=baked,
        unfit=unfit,
        mapped=lambda baked: _mapped(cls, baked, name, kwargs),
        folder=lambda baked: original(cls, *_on_folder(baked, args, kwargs)[0], **_on_folder(baked, args, kwargs)[1]),
        original=lambda: original(cls, name, *args, **kwargs),
        complete=lambda load, result: _completed(load, result, name, kwargs),
    )


def _described(cls: Any, name: Any, kwargs: Mapping[str, Any]) -> Load:
    detail = {key: kwargs[key] for key in ("subfolder", "variant", "gguf_file") if kwargs.get(key)}
    return Load(
        library="transformers",
        function=f"{cls.__name__}.from_pretrained",
        uri=from_hub.uri_of(name, kwargs.get("revision")),
        class_=f"transformers:{cls.__name__}",
        dtype=spelled(_dtype(kwargs)),
        detail=detail,
        obstacle=_obstacle(cls, kwargs),
    )


def _obstacle(cls: Any, kwargs: Mapping[str, Any]) -> str | None:
    """Why a model that is loaded this way cannot be baked."""
    if cls.__module__.partition(".")[0] == "transformers_modules":
        return "remote code"
    if kwargs.get("gguf_file"):
        return "GGUF"
    if redirect.observing() and any(kwargs.get(name) for name in _QUANTISED):
        return "quantisation at load"
    return None


def _completed(load: Load, result: Any, name: Any, kwargs: Mapping[str, Any]) -> Load:
    """The load with what its result tells: the commit that was loaded, and the dtype."""
    model = result[0] if isinstance(result, tuple) else result
    obstacle = load.obstacle
    if obstacle is None and getattr(model.config, "quantization_config", None) is not None:
        obstacle = "quantisation at load"
    uri = from_hub.pinned(load.uri, kwargs.get("cache_dir"), "config.json", kwargs.get("subfolder"))
    return replace(load, uri=uri, dtype=spelled(model.dtype), obstacle=obstacle)


# --- what the map can serve --------------------------------------------------------------------------------------


def _unfit(cls: Any, baked: BakedModel, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Why the map cannot serve this call, or None."""
    if other := _other_variant(baked, kwargs):
        return other
    if class_of(baked) != f"transformers:{cls.__name__}":
        return f"it was baked as {class_of(baked)}, not as {cls.__name__}"
    if args:
        return "positional arguments for the model's constructor"
    return unfit_arguments(cls, baked, kwargs)


def _other_variant(baked: BakedModel, kwargs: Mapping[str, Any]) -> str | None:
    variant = kwargs.get("variant")
    return None if variant == baked.manifest.options.get("variant") else f"variant={variant!r} is not what was baked"


def unfit_arguments(cls: Any, baked: BakedModel, kwargs: Mapping[str, Any]) -> str | None:
    """Why the map cannot serve a call with these arguments, or None."""
    for key, value in kwargs.items():
        if key in _HARMLESS or key in _CHECKED or not _says_something(key, value):
            continue
        return f"{key}={_shown(value)}"
    return _unfit_device(kwargs) or _unfit_dtype(baked, kwargs) or _unfit_config(cls, baked, kwargs)


def _says_something(key: str, value: Any) -> bool:
    if key == "variant":  # compared before
        return False
    if key == "adapter_kwargs":  # the hub's arguments; a baked model has no adapter
        return bool(set(value or ()) - {"token", "revision"})
    if key == "adapter_name":
        return bool(value != "default")
    return key not in _SWITCHES or not (value is None or value is False or value in ("", {}))


def _unfit_device(kwargs: Mapping[str, Any]) -> str | None:
    from transformers.modeling_utils import get_torch_context_manager_or_global_device

    asked = kwargs.get("device_map")
    if asked is None and (asked := get_torch_context_manager_or_global_device()) is None:
        return None
    places = asked.values() if isinstance(asked, dict) else [asked]
    return None if all(str(place) == "cpu" for place in places) else f"device_map={_shown(asked)}"


def _unfit_dtype(baked: BakedModel, kwargs: Mapping[str, Any]) -> str | None:
    asked, have = spelled(_dtype(kwargs)), baked.manifest.options.get("dtype", "float32")
    return None if asked in ("auto", have) else f"dtype {asked}, and {have} was baked"


def _unfit_config(cls: Any, baked: BakedModel, kwargs: Mapping[str, Any]) -> str | None:
    given = kwargs.get("config")
    if given is None:
        return None
    if not isinstance(given, cls.config_class):
        return "a configuration of its own"
    own = cls.config_class.from_pretrained(baked.folder, local_files_only=True)
    other = other_key(given, own)
    return f"a configuration with another {other}" if other else None


_NAMES = frozenset({"_name_or_path", "name_or_path", "_commit_hash", "dtype", "torch_dtype"})
"""Keys of a configuration that say where it came from, or are compared by themselves."""


_AT_RUN = ("use_cache",)
"""Keys that a forward pass reads and no constructor: sentence-transformers sets them before the load."""


def other_key(given: Any, own: Any) -> str | None:
    """The first key in which two configurations differ so that the networks may, or None."""
    found = [key for key in differences(given.to_dict(), own.to_dict()) if key not in _AT_RUN]
    return found[0] if found else None


def take_at_run(config: Any, given: Any) -> None:
    """Give a mapped model's configuration what the passed one says of forward passes."""
    for key in _AT_RUN:
        if hasattr(given, key) and getattr(config, key, None) != getattr(given, key):
            setattr(config, key, getattr(given, key))


def differences(given: Mapping[str, Any], own: Mapping[str, Any]) -> list[str]:
    found = []
    for key in sorted({*given, *own} - _NAMES):
        one, other = given.get(key), own.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            found += [f"{key}.{inner}" for inner in differences(one, other)]
        elif one != other:
            found.append(key)
    return found


def _dtype(kwargs: Mapping[str, Any]) -> Any:
    """The dtype that the call asks for, after the version's own default: 4 takes torch's, 5 the checkpoint's."""
    asked = kwargs.get("dtype")
    asked = kwargs.get("torch_dtype") if asked is None else asked
    if asked is not None:
        return asked
    if _major() >= 5:
        return "auto"
    import torch

    return torch.get_default_dtype()


def _major() -> int:
    import transformers

    return int(transformers.__version__.partition(".")[0])


def spelled(dtype: Any) -> str:
    return str(dtype).removeprefix("torch.")


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__}(…)"


# --- the three ways ----------------------------------------------------------------------------------------------


def _mapped(cls: Any, baked: BakedModel, name: Any, kwargs: Mapping[str, Any]) -> Any:
    model: Any = redirect.module_of(baked)
    asked = kwargs.get("attn_implementation") or getattr(kwargs.get("config"), "_attn_implementation_internal", None)
    if asked is not None and asked != model.config._attn_implementation:
        raise redirect.NotMappedError(
            f"attn_implementation={asked!r}, and {model.config._attn_implementation!r} was baked"
        )
    take_at_run(model.config, kwargs.get("config"))
    rename(model, str(name), hub.commit_of(baked) if hub.repo_of(baked) == name else None)
    if _major() < 5:
        _finish_as_4(cls, model, baked, kwargs)
    return model


def rename(model: Any, name: str, commit: str | None) -> None:
    """Give the model the name that the user passed, and mark it as loaded, as the library does.

    The library names the configuration before it constructs the model, so parts and copies of the configuration (T5's
    encoder has one) have the name too.
    """
    before, old = model.config.name_or_path, _major() < 5
    for part in model.modules():
        part._is_hf_initialized = True  # else `post_init` of a model that contains this one would initialise it anew
        config = vars(part).get("config")
        if getattr(config, "_name_or_path", None) == before:
            config._name_or_path = name
            if old:
                config._commit_hash = commit
        if vars(part).get("name_or_path") == before:
            part.name_or_path = name
    if not old:
        for parameter in model.parameters():
            parameter._is_hf_initialized = True


def _finish_as_4(cls: Any, model: Any, baked: BakedModel, kwargs: Mapping[str, Any]) -> None:
    """What transformers 4.57 does, and 5 does not."""
    if model.can_generate() and (baked.folder / "generation_config.json").is_file():
        model.generation_config._commit_hash = model.config._commit_hash
    if kwargs.get("device_map") is not None:
        model.hf_device_map = {"": "cpu"}
    if _dtype(kwargs) == "auto":  # the parts of the configuration keep what is in the file
        own = cls.config_class.from_pretrained(baked.folder, local_files_only=True)
        for key in own.sub_configs:
            if (part := getattr(own, key)) is not None:
                getattr(model.config, key).dtype = part.dtype


def _on_folder(baked: BakedModel, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[str, Any]]:
    """Arguments for the library's own function on the baked folder, which has one set of weights, in safetensors."""
    left = {
        key: value
        for key, value in kwargs.items()
        if key not in ("revision", "variant", "cache_dir", "force_download", "use_safetensors", "_commit_hash")
    }
    return [str(baked.folder), *args], left | {"local_files_only": True}  # fmt: skip
