"""Any network: an importable `module:factory` that returns an `nn.Module`, and its state dict."""

from __future__ import annotations

import importlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prebake.baked.model import BakedModel
from prebake.errors import ConfigError, LoadError

if TYPE_CHECKING:
    from torch import nn


class TorchFamily:
    packages: tuple[str, ...] = ()
    without_torch: tuple[str, ...] = ()
    """The user's code has no version that a structure could be held against."""

    def vocabulary(self) -> tuple[object, ...]:
        return ()

    def adopt(self, module: nn.Module) -> None:
        pass

    def prepare(self, baked: BakedModel) -> None:
        import torch  # noqa: F401

        _factory(baked)

    def skeleton(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.skeleton import without_values

        return without_values(lambda: build(baked.manifest.class_, _arguments(baked), f"{baked.folder}: class")).eval()

    def ordinary(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.assembly import relink, slots
        from prebake.weights.tensors import aligned, read_tensors

        weights = baked.manifest.weights
        module = build(baked.manifest.class_, _arguments(baked), f"{baked.folder}: class")
        state: Any = OrderedDict(
            (name, aligned(tensor))
            for file in weights.files
            for name, tensor in read_tensors(baked.folder / file).items()
        )
        # modules upgrade a state dict that names no version as if it were their oldest
        state._metadata = getattr(module.state_dict(), "_metadata", None)
        state.update({name: state[stored] for name, stored in weights.aliases.items() if stored in state})
        found = module.load_state_dict(state, strict=False, assign=True)
        places = {slot.key: slot for slot in slots(module)}
        for name, stored in weights.aliases.items():  # assigning left two parameters of one tensor
            if name in places and stored in places:
                places[name].put(places[stored].tensor)
        relink(module)
        if found.missing_keys:
            raise LoadError(f"{baked.folder}: not baked: {', '.join(found.missing_keys[:5])}")
        return module.eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        return {}


def build(factory: str, arguments: Mapping[str, Any], where: str) -> nn.Module:
    """Call a `module:factory`. Raises ConfigError where it cannot be imported or returns no module."""
    from torch import nn

    module = find(factory, where)(**arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{where}: {factory} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def find(factory: str, where: str) -> Any:
    """What `module:factory` names. Raises ConfigError where it cannot be imported."""
    module, _, name = factory.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"{where}: cannot import {factory}: {error} (is its package installed beside prebake?)"
        ) from error


def _factory(baked: BakedModel) -> Any:
    return find(baked.manifest.class_, f"{baked.folder}: class")


def _arguments(baked: BakedModel) -> Mapping[str, Any]:
    arguments: Mapping[str, Any] = baked.manifest.options.get("arguments", {})
    return arguments
