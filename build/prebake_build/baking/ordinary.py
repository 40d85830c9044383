"""Loads a checkpoint with its own framework: the reference for the proof of a baked model.

Runs only in the worker process. It runs no code from a checkpoint: see `state_dicts`.
"""

from __future__ import annotations

import json
import pickle
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prebake.documents.messages import quote
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake.families import compat
from prebake.modules.assembly import relink
from prebake_build.baking.state_dicts import StateDict, cast, completed, first_line, read_state_dict, refusal
from prebake_build.files.digest import paths_of
from prebake_build.sources.archives import extract

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
OTHER_SUFFIXES = (".gguf", ".h5", ".msgpack", ".onnx", ".ot", ".tflite", ".zip")
"""Weights of other frameworks, which are neither read nor copied."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How to read a checkpoint, as declared in `models.toml`."""

    name: str
    family: str
    class_: str | None
    dtype: str
    """A torch dtype's name, or `source` for the checkpoint's own."""
    options: Mapping[str, Any]
    """Options of the family: `languages` and `quantize` for easyocr, `arguments` for torch."""

    @property
    def allow(self) -> tuple[str, ...]:
        """The Python module whose code may build the model: the application chose it in `models.toml`."""
        return (self.class_.partition(":")[0],) if self.family == "torch" and self.class_ else ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordinary:
    """The reference module, and what the runtime needs to build the same one."""

    module: nn.Module
    class_: str
    options: Mapping[str, Any]
    keep: tuple[str, ...] = ()
    """Small files of the checkpoint to copy into the baked folder, as relative paths."""
    requires: tuple[str, ...] = ("torch",)
    """Packages whose versions the proof depends on."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Small files whose text differs from the checkpoint's: path → text."""


def load_checkpoint(recipe: Recipe, checkpoint: Path) -> Ordinary:
    """Load the checkpoint through its own framework.

    Raises SourceError if it is damaged, incomplete or would run code, and ConfigError if the recipe does not fit it.
    """
    compat.torchvision_operators()
    try:
        if recipe.family == "transformers":
            return _transformers(recipe, checkpoint)
        if recipe.family == "easyocr":
            return _easyocr(recipe, checkpoint)
        return _torch(recipe, checkpoint)
    except ImportError as error:
        raise ConfigError(f"models.{recipe.name}: cannot import a package it needs: {first_line(error)}") from error


def _transformers(recipe: Recipe, checkpoint: Path) -> Ordinary:
    from prebake.families.transformers import architecture, class_named, shown

    where = f"models.{recipe.name}"
    if (checkpoint / "adapter_config.json").exists():
        raise ConfigError(
            f"{where}.source: this is an adapter, not a model: merge it into its base model first "
            "(peft: merge_and_unload), then bake the result"
        )
    config = checkpoint / "config.json"
    if not config.is_file():
        raise ConfigError(f"{where}.source: not a checkpoint of transformers: it has no config.json")
    try:
        class_ = recipe.class_ or architecture(config.read_text(encoding="utf-8"))
    except (ValueError, TypeError, AttributeError) as error:
        raise SourceError(f"{where}: config.json is not the configuration of a model: {first_line(error)}") from error
    if class_ is None:
        raise ConfigError(f'{where}.class: config.json names no architecture: add class = "transformers:…"')
    cls = class_named(class_, f"{where}.class")
    if not _is_model(cls):
        raise ConfigError(f"{where}.class: {shown(class_)} of transformers is not a model")
    dtype: Any = "auto" if recipe.dtype == "source" else getattr(torch, recipe.dtype)
    module, info = _from_pretrained(cls, checkpoint, dtype, where)
    class_ = type(module).__name__  # the concrete class, if an Auto class was given
    if info["missing_keys"]:
        raise SourceError(
            f"{where}: the checkpoint lacks {_some(info['missing_keys'])}, which {class_} would fill with random "
            "values: name the class that it was saved from"
        )
    # the dtype of the load; not that of the first parameter, which a model may keep in float32
    weights_dtype = str(getattr(module.config, "dtype", None) or module.dtype).removeprefix("torch.")
    options: dict[str, Any] = {"dtype": weights_dtype, "processor": _processor(checkpoint)}
    if frozen := sorted(name for name, parameter in module.named_parameters() if not parameter.requires_grad):
        options["frozen"] = frozen
    keep = tuple(path for path in paths_of(checkpoint, hidden=False)
                 if not _is_weights(Path(path)) and not path.endswith(OTHER_SUFFIXES))  # fmt: skip
    dequantized = not hasattr(module.config, "quantization_config")  # True if it was dequantized, or never quantized
    text = _config_text(config, None if recipe.dtype == "source" else weights_dtype, dequantized)
    texts = {"config.json": text} if text else {}
    return Ordinary(module=module, class_=class_, options=options, keep=keep, texts=texts,
                    requires=("torch", "transformers"))  # fmt: skip


def _from_pretrained(cls: Any, checkpoint: Path, dtype: Any, where: str) -> tuple[nn.Module, Mapping[str, Any]]:
    try:
        module, info = cls.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False, dtype=dtype,
                                           output_loading_info=True)  # fmt: skip
    except ImportError:
        raise
    except Exception as error:  # frameworks raise anything
        cause: BaseException | None = error
        while cause is not None:  # transformers 4 wraps the pickle's error in another
            if isinstance(cause, pickle.UnpicklingError):
                raise refusal(cause, where) from error
            cause = cause.__cause__ or cause.__context__
        raise SourceError(f"{where}: {cls.__name__} cannot load this checkpoint: {first_line(error)}") from error
    return module, info


def _is_model(cls: Any) -> bool:
    """Whether it is a model class, or an Auto class, which finds the class from `config.json`."""
    from transformers import PreTrainedModel

    return isinstance(cls, type) and (issubclass(cls, PreTrainedModel) or cls.__name__.startswith("AutoModel"))


def _processor(checkpoint: Path) -> str | None:
    """The name of the class for the folder's processor, tokenizer or feature extractor, or None."""
    import transformers

    from prebake.families.transformers import PROCESSOR_FILES, processor_class

    if not any((checkpoint / name).is_file() for name in PROCESSOR_FILES):
        return None
    try:
        processor = transformers.AutoProcessor.from_pretrained(
            checkpoint, local_files_only=True, trust_remote_code=False
        )
    except ImportError:
        raise
    except Exception as error:  # files of a processor that the library can't load
        print(f"{checkpoint}: cannot load a processor from its files: {first_line(error)}", file=sys.stderr)
        return None
    found = type(processor).__name__
    try:
        processor_class(found, str(checkpoint))
    except ConfigError:
        return None
    return found


def _config_text(config: Path, dtype: str | None, dequantized: bool) -> str | None:
    """The text of a `config.json` that describes the baked weights, or None if the checkpoint's does."""
    document = json.loads(config.read_text(encoding="utf-8"))
    declared = dict(document)
    if dequantized:
        document.pop("quantization_config", None)
    if dtype:
        for key in ("torch_dtype", "dtype"):
            document.pop(key, None)
        document["torch_dtype"] = dtype  # transformers 4.57 and 5 both read the older key
    if document == declared and not dtype:
        return None
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _easyocr(recipe: Recipe, checkpoint: Path) -> Ordinary:
    from prebake.families.easyocr import networks
    from prebake_build.upstream.easyocr import archive_members, recognizer_of

    languages = tuple(recipe.options["languages"])
    states: dict[str, StateDict] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for archive in archive_members(languages).values():
            # the zips match the lock's hashes, and their members matched EasyOCR's md5 when they were locked
            member = extract(checkpoint / archive.name, archive.member, Path(scratch), md5=None)
            part = "detector" if archive.name.startswith("craft") else "recognizer"
            states[part] = _strip_module(read_state_dict(member, f"models.{recipe.name}"))
    if "Prediction.bias" not in states["recognizer"]:
        raise SourceError(f"models.{recipe.name}: lacks Prediction.bias: this is not a recogniser of EasyOCR")
    options = {
        "languages": list(languages),
        "quantize": bool(recipe.options["quantize"]),
        "recognizer": {
            "generation": int(recognizer_of(languages).rpartition("_g")[2]),
            "classes": int(states["recognizer"]["Prediction.bias"].shape[0]),
        },
    }
    module: Any = networks(options)
    for part, state in states.items():
        _fill(getattr(module, part), state, f"models.{recipe.name}: {part}")
    packages = ("torch", "torchvision", "easyocr")
    return Ordinary(module=module.eval(), class_="Reader", options=options, requires=packages)


def _torch(recipe: Recipe, checkpoint: Path) -> Ordinary:
    from prebake.families.torch_module import build

    where = f"models.{recipe.name}"
    if recipe.class_ is None:
        raise ConfigError(f'{where}.class: a model of family torch needs one: class = "torch:package.module:factory"')
    candidates = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and _is_weights(path)]
    if len(candidates) != 1:
        raise ConfigError(
            f"{where}.source: expected one file of weights ({', '.join(WEIGHT_SUFFIXES)}), "
            f"found {_some([path.name for path in candidates]) if candidates else 'none'}"
        )
    state = read_state_dict(candidates[0], where)
    if recipe.dtype != "source":
        state = cast(state, getattr(torch, recipe.dtype))
    arguments = dict(recipe.options.get("arguments", {}))
    try:
        module = build(recipe.class_, arguments, f"{where}.class", recipe.allow)
    except PrebakeError:
        raise
    except Exception as error:  # the user's code may raise any exception
        raise ConfigError(
            f"{where}.class: {recipe.class_} failed: {type(error).__name__}: {first_line(error)}"
        ) from error
    _fill(module, completed(state, module), where)
    return Ordinary(module=module.eval(), class_=recipe.class_, options={"arguments": arguments})


def _fill(module: nn.Module, state: StateDict, where: str) -> None:
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise SourceError(f"{where}: the checkpoint does not fit the class: {' '.join(str(error).split())}") from error
    relink(module)


def _strip_module(state: StateDict) -> StateDict:
    """The state dict without the prefix `module.` of `torch.nn.DataParallel`."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _is_weights(path: Path) -> bool:
    return path.suffix in WEIGHT_SUFFIXES or path.name.endswith((".safetensors.index.json", ".bin.index.json"))


def _some(names: Any) -> str:
    known = sorted(names)
    return ", ".join(quote(name) for name in known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")
