"""Pipelines of diffusers: every component in its folder, as `model_index.json` lists them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prebake.documents.table import Table
from prebake.errors import ConfigError, DocumentError, PrebakeError, SourceError
from prebake_build.families.family import BuildFamily, Ordinary, Recipe
from prebake_build.families.files import VARIANT, check_variant, kept_files, variant
from prebake_build.families.transformers import config_text
from prebake_build.sources.selection import DIFFUSERS, Wanted


class DiffusersBuild(BuildFamily):
    example = "diffusers:StableDiffusionPipeline"
    pattern = re.compile(r"[A-Z]\w*", re.ASCII)
    keys = (VARIANT,)
    no_inputs = "has several networks and no forward for inputs"

    def options(self, table: Table) -> Mapping[str, Any]:
        """`variant`: which of the published weights to use, such as `fp16`."""
        return variant(table)

    def hub(self, options: Mapping[str, Any]) -> Wanted:
        return Wanted(weights=DIFFUSERS, index="model_index.json", folders=_folders, variant=options.get(VARIANT))

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        from prebake.families.diffusers import INDEX, assembled, components, networks
        from prebake_build.families.state_dicts import load_error

        where = f"models.{recipe.name}"
        if not (checkpoint / INDEX).is_file():
            raise ConfigError(f"{where}.source: not a pipeline of diffusers: it has no {INDEX}")
        try:
            components(checkpoint, f"{where}.source")
        except DocumentError as error:
            raise SourceError(str(error)) from error
        class_ = recipe.class_ or json.loads((checkpoint / INDEX).read_text(encoding="utf-8"))["_class_name"]
        check_variant(checkpoint, recipe.options, where)
        given = {} if recipe.dtype == "source" else {"dtype": getattr(torch, recipe.dtype)}
        try:
            pipeline = assembled(checkpoint, class_, **given, **dict(recipe.options))
        except (ImportError, PrebakeError):
            raise
        except Exception as error:  # the library raises any exception
            raise load_error(error, where, class_) from error
        module: Any = networks(pipeline)
        dtypes = {name: str(part.dtype).removeprefix("torch.") for name, part in module.items()}
        options: dict[str, Any] = {"dtypes": dtypes}
        if frozen := sorted(name for name, parameter in module.named_parameters() if not parameter.requires_grad):
            options["frozen"] = frozen
        return Ordinary(
            module=module.eval(),
            class_=class_,
            options=options,
            keep=kept_files(checkpoint, code=False),
            texts=_configurations(checkpoint, dtypes, module),
            weights={f"{name}/{_weights_name(part)}": f"{name}." for name, part in module.items()},
            requires=("torch", "transformers", "diffusers"),
        )


def _folders(text: str, where: str) -> list[str]:
    """The folders of the components that a `model_index.json` lists. Raises SourceError if it is malformed."""
    try:
        names = [name for name, value in json.loads(text).items() if isinstance(value, list) and any(value)]
    except (ValueError, AttributeError) as error:
        raise SourceError(f"{where}: is not the index of a pipeline: {error}") from error
    return [f"{name}/" for name in names if name.isidentifier()]


def _weights_name(part: Any) -> str:
    """The file that `from_pretrained` of this network reads."""
    from diffusers import ModelMixin

    return "diffusion_pytorch_model.safetensors" if isinstance(part, ModelMixin) else "model.safetensors"


def _configurations(checkpoint: Path, dtypes: Mapping[str, str], module: Any) -> dict[str, str]:
    """Configurations of transformers models that describe the baked weights."""
    from transformers import PreTrainedModel

    texts = {}
    for name, part in module.items():
        path = checkpoint / name / "config.json"
        if isinstance(part, PreTrainedModel) and (text := config_text(path, dtypes[name], dequantized=False)):
            texts[f"{name}/config.json"] = text
    return texts
