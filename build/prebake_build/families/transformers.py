"""Models of transformers: the class from `config.json` or declared, loaded by `from_pretrained`."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.documents.table import Table
from prebake.errors import ConfigError, SourceError
from prebake_build.families.family import BuildFamily, Ordinary, Recipe
from prebake_build.families.files import VARIANT, check_variant, kept_files, some, variant

if TYPE_CHECKING:
    from torch import nn


class TransformersBuild(BuildFamily):
    example = "transformers:BlipForConditionalGeneration"
    pattern = re.compile(r"[A-Za-z_]\w*", re.ASCII)

    keys = (VARIANT,)

    def options(self, table: Table) -> Mapping[str, Any]:
        """`variant`: which of the published weights to use, such as `fp16`."""
        return variant(table)

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        from prebake.families.transformers import architecture, class_named, shown
        from prebake_build.families.state_dicts import first_line

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
            raise SourceError(
                f"{where}: config.json is not the configuration of a model: {first_line(error)}"
            ) from error
        if class_ is None:
            raise ConfigError(f'{where}.class: config.json names no architecture: add class = "transformers:…"')
        cls = class_named(class_, f"{where}.class")
        if not _is_model(cls):
            raise ConfigError(f"{where}.class: {shown(class_)} of transformers is not a model")
        dtype: Any = "auto" if recipe.dtype == "source" else getattr(torch, recipe.dtype)
        check_variant(checkpoint, recipe.options, where)
        module, info = _from_pretrained(cls, checkpoint, dtype, recipe.options.get(VARIANT), where)
        class_ = type(module).__name__  # the concrete class, if an Auto class was given
        if info["missing_keys"]:
            raise SourceError(
                f"{where}: the checkpoint lacks {some(info['missing_keys'])}, which {class_} would fill with random "
                "values: name the class that it was saved from"
            )
        # the dtype of the load; not that of the first parameter, which a model may keep in float32
        weights_dtype = str(getattr(module.config, "dtype", None) or module.dtype).removeprefix("torch.")
        options: dict[str, Any] = {"dtype": weights_dtype, "processor": _processor(checkpoint)}
        if frozen := sorted(name for name, parameter in module.named_parameters() if not parameter.requires_grad):
            options["frozen"] = frozen
        keep = kept_files(checkpoint)
        dequantized = not hasattr(
            module.config, "quantization_config"
        )  # True if it was dequantized, or never quantized
        text = config_text(config, None if recipe.dtype == "source" else weights_dtype, dequantized)
        texts = {"config.json": text} if text else {}
        return Ordinary(module=module, class_=class_, options=options, keep=keep, texts=texts,
                        requires=("torch", "transformers"))  # fmt: skip


def _from_pretrained(
    cls: Any, checkpoint: Path, dtype: Any, variant: str | None, where: str
) -> tuple[nn.Module, Mapping[str, Any]]:
    from prebake_build.families.spill import spilling_transformers
    from prebake_build.families.state_dicts import load_error

    given = {} if variant is None else {VARIANT: variant}
    try:
        with spilling_transformers():
            module, info = cls.from_pretrained(checkpoint, local_files_only=True, trust_remote_code=False, dtype=dtype,
                                               output_loading_info=True, **given)  # fmt: skip
    except ImportError:
        raise
    except Exception as error:  # frameworks raise anything
        raise load_error(error, where, cls.__name__) from error
    return module, info


def _is_model(cls: Any) -> bool:
    """Whether it is a model class, or an Auto class, which finds the class from `config.json`."""
    from transformers import PreTrainedModel

    return isinstance(cls, type) and (issubclass(cls, PreTrainedModel) or cls.__name__.startswith("AutoModel"))


def _processor(checkpoint: Path) -> str | None:
    """The name of the class for the folder's processor, tokenizer or feature extractor, or None."""
    import transformers

    from prebake.families.transformers import PROCESSOR_FILES, processor_class
    from prebake_build.families.state_dicts import first_line

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


def config_text(config: Path, dtype: str | None, dequantized: bool) -> str | None:
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
