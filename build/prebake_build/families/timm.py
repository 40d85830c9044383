"""Models of timm: a repository of the hub with its `config.json`, or one file of weights for a known architecture."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.documents.messages import quote
from prebake.documents.table import Table
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake_build.families.family import BuildFamily, Ordinary, Recipe
from prebake_build.families.files import WEIGHT_SUFFIXES, is_weights, kept_files, some
from prebake_build.families.torch_module import plain_arguments
from prebake_build.sources.selection import OPEN_CLIP, Wanted

if TYPE_CHECKING:
    from torch import nn

_ARCHITECTURE = re.compile(r"[a-z]\w*", re.ASCII)


class TimmBuild(BuildFamily):
    example = "timm:resnet18"
    pattern = re.compile(r"[a-z]\w*(?:\.\w+)?", re.ASCII)
    keys = ("arguments",)

    def options(self, table: Table) -> Mapping[str, Any]:
        """`arguments`: keyword arguments of `create_model`, without those that name weights."""
        from prebake.families.timm import RESERVED

        arguments = plain_arguments(table)
        for name in RESERVED:
            if name in arguments:
                raise table.fail(f"arguments.{name}", "is not an argument here: `source` says where the weights are")
        return {"arguments": arguments}

    def hub(self, options: Mapping[str, Any]) -> Wanted:
        return Wanted(weights=("model.safetensors", "pytorch_model.bin", *OPEN_CLIP))

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        from prebake.families.timm import CONFIG, check_architecture

        where = f"models.{recipe.name}"
        architecture = _architecture(checkpoint / CONFIG, where)
        declared = (recipe.class_ or architecture or "").partition(".")[0]
        if not declared:
            raise ConfigError(f'{where}.class: the checkpoint has no {CONFIG} of timm: add class = "timm:ARCHITECTURE"')
        if architecture is not None and declared != architecture:
            raise ConfigError(f"{where}.class: {quote(declared)} is declared, but {CONFIG} has {quote(architecture)}")
        check_architecture(declared, f"{where}.class")
        arguments = dict(recipe.options.get("arguments", {}))
        class_ = recipe.class_ or declared
        module = _pretrained(class_, checkpoint, arguments, where)
        options: dict[str, Any] = {"arguments": arguments}
        if recipe.dtype != "source":
            module = module.to(getattr(torch, recipe.dtype))
            options["dtype"] = recipe.dtype
        return Ordinary(module=module.eval(), class_=class_, options=options, keep=kept_files(checkpoint, code=False),
                        requires=("torch", "timm"))  # fmt: skip


def _architecture(config: Path, where: str) -> str | None:
    if not config.is_file():
        return None
    try:
        found = json.loads(config.read_text(encoding="utf-8"))["architecture"]
    except (ValueError, KeyError, TypeError) as error:
        raise SourceError(f"{where}: config.json is not the configuration of a model of timm: {error!r}") from error
    if not isinstance(found, str) or not _ARCHITECTURE.fullmatch(found):
        raise SourceError(f"{where}: config.json: architecture is not a name of timm")
    return found


def _pretrained(class_: str, checkpoint: Path, arguments: Mapping[str, Any], where: str) -> nn.Module:
    """The model as `create_model` loads it, twice from different seeds: what differs is not in the checkpoint."""
    import torch

    from prebake.families.timm import CONFIG, created
    from prebake_build.families.state_dicts import load_error

    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file() and is_weights(path)]
    if len(files) != 1:
        raise ConfigError(
            f"{where}.source: expected one file of weights ({', '.join(WEIGHT_SUFFIXES)}), "
            f"found {some(path.name for path in files) if files else 'none'}"
        )
    source = {} if (checkpoint / CONFIG).is_file() else {"pretrained_cfg_overlay": {"file": str(files[0])}}
    found = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        try:
            found.append(created(class_, checkpoint, arguments, pretrained=True, **source))
        except (ImportError, PrebakeError):
            raise
        except Exception as error:  # the library raises any exception
            raise load_error(error, where, class_) from error
    first, second = (module.state_dict() for module in found)
    if drawn := [name for name in first if not torch.equal(first[name], second[name])]:
        raise ConfigError(
            f"{where}.arguments: with these, {class_} has random values in {some(drawn)}, which the checkpoint lacks"
        )
    return found[0]
