"""A checkpoint as its own framework loads it: the reference that everything baked is held against.

Runs in the worker process only. Pickles are read with `weights_only=True`: what they may construct is
tensors and containers, and a checkpoint that wants anything else is refused.
"""

from __future__ import annotations

import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from prebake import compat
from prebake.assembly import relink
from prebake.documents import quote
from prebake.errors import ConfigError, SourceError
from prebake_build.digest import paths_of
from prebake_build.sources.archives import extract

WEIGHT_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".zip")


@dataclass(frozen=True, kw_only=True, slots=True)
class Recipe:
    """How a checkpoint is to be read, as `models.toml` declares it."""

    name: str
    family: str
    class_: str | None
    dtype: str
    """A torch dtype's name, or `source` for the checkpoint's own."""
    options: Mapping[str, Any]
    """The family's own: `languages` and `quantize` for easyocr, `arguments` for torch."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordinary:
    """The reference, and what the runtime must be told to build the same."""

    module: nn.Module
    class_: str
    options: Mapping[str, Any]
    keep: tuple[str, ...] = ()
    """Small files of the checkpoint that belong into the baked folder, as paths in it."""
    requires: tuple[str, ...] = ("torch",)
    """Packages whose versions the fast tiers are proven with."""
    texts: Mapping[str, str] = field(default_factory=dict)
    """Small files whose text differs from the checkpoint's."""


def load_checkpoint(recipe: Recipe, checkpoint: Path) -> Ordinary:
    """Load the checkpoint through its own framework.

    Raises SourceError where it is damaged, incomplete or wants to run code, ConfigError where the recipe
    does not fit it.
    """
    compat.torchvision_operators()
    try:
        if recipe.family == "transformers":
            return _transformers(recipe, checkpoint)
        if recipe.family == "easyocr":
            return _easyocr(recipe, checkpoint)
        return _torch(recipe, checkpoint)
    except pickle.UnpicklingError as error:
        raise SourceError(
            f"models.{recipe.name}: refused: its pickle wants to construct more than tensors, so loading it "
            f"would run code of whoever wrote it: {_first_line(error)}"
        ) from error


def _transformers(recipe: Recipe, checkpoint: Path) -> Ordinary:
    from prebake.families.transformers import architecture, model_class

    where = f"models.{recipe.name}"
    if (checkpoint / "adapter_config.json").exists():
        raise ConfigError(
            f"{where}.source: this is an adapter, not a model: merge it into its base model first "
            "(peft: merge_and_unload), then bake the result"
        )
    config = checkpoint / "config.json"
    if not config.is_file():
        raise ConfigError(f"{where}.source: the checkpoint has no config.json, so it is none of transformers")
    class_ = recipe.class_ or architecture(config.read_text(encoding="utf-8"))
    if class_ is None:
        raise ConfigError(f'{where}.class: config.json names no architecture: add class = "transformers:…"')
    dtype: Any = "auto" if recipe.dtype == "source" else getattr(torch, recipe.dtype)
    module, info = _from_pretrained(model_class(class_, f"{where}.class"), checkpoint, dtype, where)
    if info["missing_keys"]:
        raise SourceError(
            f"{where}: the checkpoint lacks {_some(info['missing_keys'])}, which {class_} would fill with random "
            "values: name the class that it was saved from"
        )
    weights_dtype = str(getattr(module, "dtype", torch.float32)).removeprefix("torch.")
    options = {"dtype": weights_dtype, "processor": _processor(checkpoint)}
    keep = tuple(path for path in paths_of(checkpoint, hidden=False) if not _is_weights(Path(path)))
    texts = {} if recipe.dtype == "source" else {"config.json": _with_dtype(config, weights_dtype)}
    return Ordinary(module=module, class_=class_, options=options, keep=keep, texts=texts,
                    requires=("torch", "transformers"))  # fmt: skip


def _from_pretrained(cls: Any, checkpoint: Path, dtype: Any, where: str) -> tuple[nn.Module, Mapping[str, Any]]:
    try:
        module, info = cls.from_pretrained(checkpoint, local_files_only=True, dtype=dtype, output_loading_info=True)
    except pickle.UnpicklingError:
        raise
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise SourceError(f"{where}: {cls.__name__} cannot load this checkpoint: {_first_line(error)}") from error
    return module, info


def _processor(checkpoint: Path) -> str | None:
    """The class of transformers that reads the folder's processor, tokenizer or feature extractor."""
    import transformers

    from prebake.families.transformers import PROCESSOR_FILES

    if not any((checkpoint / name).is_file() for name in PROCESSOR_FILES):
        return None
    try:
        found = type(transformers.AutoProcessor.from_pretrained(checkpoint, local_files_only=True)).__name__
    except (OSError, ValueError, KeyError, AttributeError):
        return None  # some files of a processor, and none that the library can put together
    return found if hasattr(transformers, found) else None


def _with_dtype(config: Path, dtype: str) -> str:
    """`config.json` that declares the dtype which the baked weights have."""
    import json

    document = json.loads(config.read_text(encoding="utf-8"))
    for key in ("torch_dtype", "dtype"):
        document.pop(key, None)
    # transformers 4.57 and 5 both read the older key
    return json.dumps({**document, "torch_dtype": dtype}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def _easyocr(recipe: Recipe, checkpoint: Path) -> Ordinary:
    from prebake.families.easyocr import networks
    from prebake_build.sources.easyocr import archive_members, recognizer_of

    languages = tuple(recipe.options["languages"])
    states: dict[str, dict[str, torch.Tensor]] = {}
    with tempfile.TemporaryDirectory() as scratch:
        for archive in archive_members(languages).values():
            # the zips were held against the lock's hashes, and those against EasyOCR's md5 when it was locked
            member = extract(checkpoint / archive.name, archive.member, Path(scratch), md5=None)
            part = "detector" if archive.name.startswith("craft") else "recognizer"
            states[part] = _strip_module(_unpickle(member, recipe.name))
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
            f"{where}.source: expected one file of weights ({', '.join(WEIGHT_SUFFIXES[:-1])}), "
            f"found {_some([path.name for path in candidates]) if candidates else 'none'}"
        )
    state = _unpickle(candidates[0], recipe.name)
    if recipe.dtype != "source":
        dtype = getattr(torch, recipe.dtype)
        state = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in state.items()}
    arguments = dict(recipe.options.get("arguments", {}))
    module = build(recipe.class_, arguments, f"{where}.class")
    _fill(module, state, where)
    return Ordinary(module=module.eval(), class_=recipe.class_, options={"arguments": arguments})


def _unpickle(path: Path, name: str) -> dict[str, torch.Tensor]:
    """A state dict from a pickle or a safetensors file; refuses anything but names and tensors."""
    if path.suffix == ".safetensors":
        from prebake.tensors import map_tensors

        return map_tensors(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError:
        raise
    except (RuntimeError, EOFError, ValueError, OSError) as error:
        raise SourceError(f"models.{name}: {path.name} is no readable checkpoint: {_first_line(error)}") from error
    if not isinstance(state, Mapping) or not all(isinstance(value, torch.Tensor) for value in state.values()):
        raise SourceError(f"models.{name}: {path.name} holds no state dict (expected names and tensors only)")
    return dict(state)


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(2) == b"PK"  # only this format of torch.save can be mapped


def _fill(module: nn.Module, state: Mapping[str, torch.Tensor], where: str) -> None:
    try:
        module.load_state_dict(state, strict=True, assign=True)
    except RuntimeError as error:
        raise SourceError(f"{where}: the checkpoint does not fit the class: {' '.join(str(error).split())}") from error
    relink(module)


def _strip_module(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys without the `module.` that `torch.nn.DataParallel` put before them."""
    return {name.removeprefix("module."): tensor for name, tensor in state.items()}


def _is_weights(path: Path) -> bool:
    return path.suffix in WEIGHT_SUFFIXES or path.name.endswith((".safetensors.index.json", ".bin.index.json"))


def _some(names: Any) -> str:
    known = sorted(names)
    return ", ".join(quote(name) for name in known[:5]) + (f" and {len(known) - 5} more" if len(known) > 5 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:400]
