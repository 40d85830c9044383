"""Models of Hugging Face's transformers.

The skeleton repeats what `PreTrainedModel.from_pretrained` does around the constructor (read from its
source in 4.57 and 5.23): dtype on the configuration and its parts, evaluation mode, and the generation
configuration, which comes from `generation_config.json` or else from `config.json`.

Class names come from a manifest, so each class is checked for the expected base class: transformers has functions and
modules under its names too.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prebake.baked.model import BakedModel
from prebake.documents.messages import nearest, quote, short
from prebake.documents.table import Table
from prebake.errors import ConfigError, LoadError
from prebake.families import compat

if TYPE_CHECKING:
    from torch import nn

PROCESSOR_FILES = (
    "processor_config.json",
    "preprocessor_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "vocab.json",
    "vocab.txt",
)
"""If any of these exists, the folder has a processor, tokenizer or feature extractor."""


PROCESSORS = frozenset({
    ("transformers.processing_utils", "ProcessorMixin"),
    ("transformers.tokenization_utils_base", "PreTrainedTokenizerBase"),
    ("transformers.feature_extraction_utils", "FeatureExtractionMixin"),
    ("transformers.image_processing_base", "ImageProcessingMixin"),
})  # fmt: skip
"""Base classes of processors, as module and name: comparing names imports nothing."""

_CLASS = re.compile(r"(?=.*[A-Z])[A-Za-z]\w*", re.ASCII)
"""A class name of transformers. Modules and functions have lower-case names and are not looked up."""

HASH = "_original_object_hash"
"""Attribute of a generation configuration: its hash when it was created."""


class TransformersFamily:
    install: str = "'prebake[transformers]'"
    build: str = "prebake_build.families.transformers:TransformersBuild"
    packages: tuple[str, ...] = ("torch", "transformers")
    modules: str = (
        r"transformers\.(activations|configuration_utils|pytorch_utils|(utils\.)?backbone_utils"
        r"|generation\.configuration_utils|models\.([a-z]\w*\.)+(configuration|modeling)_(?!tf_|flax_)\w+)"
    )
    """Covers everything that structures of the known architectures reference, but no programs or converters."""
    without_torch: tuple[str, ...] = (
        "numpy", "huggingface_hub.hf_api", "tqdm.auto", "regex", "tokenizers", "safetensors", "yaml", "PIL.Image"
    )  # fmt: skip

    def __init__(self, allow: Sequence[str] = ()) -> None:
        """Needs no code of the application."""

    def vocabulary(self) -> tuple[object, ...]:
        from transformers import GenerationConfig, PretrainedConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        return PretrainedConfig, GenerationConfig, *ROPE_INIT_FUNCTIONS.values()

    def adopt(self, module: nn.Module) -> None:
        """Register the model for recording hidden states and attentions, as `PreTrainedModel` does, and recompute the
        hashes by which generation configurations detect changes: Python's hashes differ between processes.
        """
        from transformers import PreTrainedModel, modeling_utils

        registry = modeling_utils._CAN_RECORD_REGISTRY
        by_name = type(registry) is dict  # in 4.57; in 5 a custom class that takes the model
        for part in module.modules():
            generation = getattr(part, "generation_config", None)
            if getattr(generation, HASH, None) is not None:
                setattr(generation, HASH, hash(generation))
            if isinstance(part, PreTrainedModel):
                registry[str(type(part)) if by_name else part] = part._can_record_outputs

    def prepare(self, baked: BakedModel) -> None:
        _check_options(baked)
        compat.torchvision_operators()
        _model_class(baked)

    def skeleton(self, baked: BakedModel) -> nn.Module:
        return skeleton(
            _model_class(baked), baked.folder, _dtype(baked), frozen=set(baked.manifest.options.get("frozen", ()))
        )

    def ordinary(self, baked: BakedModel) -> nn.Module:
        module, info = _model_class(baked).from_pretrained(
            baked.folder,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
            dtype=_dtype(baked),
            output_loading_info=True,
        )
        # a missing buffer keeps the value that the class computes; a missing parameter would be random
        missing = sorted(set(info["missing_keys"]) & {name for name, _ in module.named_parameters()})
        if missing:
            raise LoadError(f"{baked.folder}: not baked: {', '.join(missing[:5])}")
        return cast("nn.Module", module)

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        name = baked.manifest.options.get("processor")
        if not name:
            return {}
        found = processor_class(name, f"{baked.folder}: options.processor")
        return {"processor": found.from_pretrained(baked.folder, local_files_only=True, trust_remote_code=False)}


def skeleton(
    cls: Any, folder: Path, dtype: Any, *, config: Any = None, frozen: Collection[str] = frozenset()
) -> nn.Module:
    """A model of this class without values, as `from_pretrained` builds it; the configuration is the folder's, unless
    one is given. `frozen` lists parameters without gradient."""
    from prebake.families.construction import skeleton_of
    from prebake.modules.skeleton import without_values

    if config is None:
        config = cls.config_class.from_pretrained(folder, local_files_only=True)
    config.name_or_path = str(folder)
    for part in (config, *(getattr(config, name) for name in config.sub_configs)):
        if part is not None:
            part.dtype = dtype  # 4.57 does not do it in `_from_config`
    with skeleton_of(dtype):
        module = without_values(lambda: cls._from_config(config, dtype=dtype))
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)  # from_pretrained overrides the constructor's choice too
    module.eval()
    if module.can_generate():
        module.generation_config = _generation_config(folder) or module.generation_config
    return cast("nn.Module", module)


def _model_class(baked: BakedModel) -> Any:
    return model_class(baked.manifest.class_, f"{baked.folder}: class")


def model_class(name: str, where: str) -> Any:
    """The model class of this name in transformers.

    Raises ConfigError if the installed version lacks it, or it is not a `PreTrainedModel`.
    """
    found = class_named(name, where)
    from transformers import PreTrainedModel

    if found is None or not (issubclass(found, PreTrainedModel) or _lacks_backends(found)):
        raise ConfigError(
            f"{where}: {shown(name)} of transformers is not a model (expected a class derived from PreTrainedModel)"
        )
    return found


def processor_class(name: str, where: str) -> Any:
    """The class of a processor, tokenizer, feature extractor or image processor. Raises like `model_class`."""
    found = class_named(name, where)
    bases = {(base.__module__, base.__name__) for base in found.__mro__} if found else set()
    if found is None or not (bases & PROCESSORS or _lacks_backends(found)):
        raise ConfigError(
            f"{where}: {shown(name)} of transformers is not a processor (expected a class derived from "
            f"{', '.join(sorted(base for _, base in PROCESSORS))})"
        )
    return found


def class_named(name: str, where: str) -> type | None:
    """The class of this name in transformers, or None if it is not a class. Raises ConfigError for an unknown name."""
    import transformers

    if not _CLASS.fullmatch(name):
        return None
    try:
        found = getattr(transformers, name)
    except AttributeError:
        known = [known for known in dir(transformers) if _CLASS.fullmatch(known) and not known.endswith("Config")]
        raise ConfigError(
            f"{where}: transformers {transformers.__version__} has no {short(name)}{nearest(short(name), known)}"
        ) from None
    return found if isinstance(found, type) else None


def shown(name: str) -> str:
    """A name as messages show it, with special characters escaped."""
    return quote(name)[1:-1]


def _lacks_backends(found: type) -> bool:
    """Whether this is a dummy for a class whose packages are not installed; its use raises an ImportError with their
    names."""
    return type(found).__name__ == "DummyObject"


def _check_options(baked: BakedModel) -> None:
    """Check the options. Raises DocumentError."""
    options = Table(baked.manifest.options, f"{baked.folder}: options")
    options.take("dtype", str, "float32")
    options.maybe("processor", str)
    options.strings("frozen", [])
    options.finish()


def _dtype(baked: BakedModel) -> Any:
    return dtype_named(str(baked.manifest.options.get("dtype", "float32")), f"{baked.folder}: options.dtype")


def dtype_named(name: str, where: str) -> Any:
    """The torch dtype of this name. Raises ConfigError if there is none."""
    import torch

    found = vars(torch).get(name)  # not getattr: torch imports some of its modules on attribute access
    if not isinstance(found, torch.dtype):
        raise ConfigError(f"{where}: {quote(name)} is not a torch dtype")
    return found


def _generation_config(folder: Path) -> Any:
    """From `generation_config.json`, else from `config.json`; None if the constructor's is kept (4.57)."""
    import transformers
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        return GenerationConfig.from_pretrained(folder, local_files_only=True)
    if int(transformers.__version__.partition(".")[0]) < 5:
        return None
    return GenerationConfig.from_pretrained(
        folder, config_file_name="config.json", _from_model_config=True, local_files_only=True
    )


def architecture(config_json: str) -> str | None:
    """The first of a `config.json`'s architectures, or None."""
    found = json.loads(config_json).get("architectures") or [None]
    return found[0] if isinstance(found[0], str) else None
