"""Models of timm: `timm.create_model`, its configuration from `config.json` as the hub's repositories have it.

The class is the architecture; without a `config.json` in the folder, the registry of timm knows the configuration.
Names are looked up in that registry alone, so a manifest names no code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prebake.baked.model import BakedModel
from prebake.documents.messages import nearest, quote
from prebake.documents.table import Table
from prebake.errors import ConfigError, LoadError
from prebake.families import compat

if TYPE_CHECKING:
    from pathlib import Path

    from torch import nn

CONFIG = "config.json"
RESERVED = ("pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir", "model_name")
"""Arguments of `create_model` that name weights or files."""


class TimmFamily:
    install: str = "'prebake[timm]'"
    build: str = "prebake_build.families.timm:TimmBuild"
    packages: tuple[str, ...] = ("torch", "timm")
    modules: str = r"timm\.(layers|models)\._?[a-z]\w*"
    without_torch: tuple[str, ...] = ("numpy", "huggingface_hub.hf_api", "safetensors", "yaml", "PIL.Image")

    def __init__(self, allow: Sequence[str] = ()) -> None:
        """Needs no code of the application."""

    def vocabulary(self) -> tuple[object, ...]:
        return ()

    def adopt(self, module: nn.Module) -> None:
        pass

    def prepare(self, baked: BakedModel) -> None:
        options = Table(baked.manifest.options, f"{baked.folder}: options")
        arguments = options.table("arguments")
        for name in arguments:
            if name in RESERVED:
                raise arguments.fail(name, "names weights, which the folder has itself")
        if options.maybe("dtype", str) is not None:
            _dtype(baked)
        options.finish()
        compat.torchvision_operators()
        check_architecture(baked.manifest.class_, f"{baked.folder}: class")

    def skeleton(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.skeleton import without_values

        return without_values(lambda: self._build(baked)).eval()

    def ordinary(self, baked: BakedModel) -> nn.Module:
        from prebake.weights.tensors import read_tensors

        module = self._build(baked)
        if (dtype := _dtype(baked)) is not None:
            module = module.to(dtype)
        state = {name: tensor for file in baked.manifest.weights.files
                 for name, tensor in read_tensors(baked.folder / file).items()}  # fmt: skip
        state.update(
            {name: state[stored] for name, stored in baked.manifest.weights.aliases.items() if stored in state}
        )
        found = module.load_state_dict(state, strict=False)
        if found.missing_keys:
            raise LoadError(f"{baked.folder}: not baked: {', '.join(found.missing_keys[:5])}")
        return module.eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        return {}

    def _build(self, baked: BakedModel) -> nn.Module:
        return created(baked.manifest.class_, baked.folder, baked.manifest.options["arguments"])


def created(architecture: str, folder: Path, arguments: Mapping[str, Any], **source: Any) -> nn.Module:
    """`timm.create_model` with the folder's `config.json`, or with the registry's configuration if there is none."""
    import timm

    name = f"local-dir:{folder}" if (folder / CONFIG).is_file() else architecture
    module: nn.Module = timm.create_model(name, **arguments, **source)
    return module


def check_architecture(name: str, where: str) -> None:
    """Raise ConfigError unless timm's registry has this architecture, with or without a tag (`resnet18.a1_in1k`)."""
    import timm

    architecture = name.partition(".")[0]
    if not timm.is_model(architecture):
        raise ConfigError(
            f"{where}: timm {timm.__version__} has no model {quote(architecture)}"
            f"{nearest(architecture, timm.list_models())}"
        )


def _dtype(baked: BakedModel) -> Any:
    import torch

    name = baked.manifest.options.get("dtype")
    found = vars(torch).get(name) if name is not None else None
    if name is not None and not isinstance(found, torch.dtype):
        raise ConfigError(f"{baked.folder}: options.dtype: {quote(str(name))} is not a torch dtype")
    return found
