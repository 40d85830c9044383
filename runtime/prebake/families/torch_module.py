"""Any network: an importable `module:factory` that returns an `nn.Module`, and its state dict.

The factory is code, but the manifest that references it is data: the application must allow its module (`allowed`).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.baked.model import BakedModel
from prebake.documents.table import Table
from prebake.errors import ConfigError, LoadError
from prebake.families.allowed import check_allowed, find_factory

if TYPE_CHECKING:
    from torch import nn


class TorchFamily:
    install: str = "torch"
    build: str = "prebake_build.families.torch_module:TorchBuild"
    packages: tuple[str, ...] = ()
    """None: the user's code has no version to compare with that of a structure."""
    modules: str = ""
    without_torch: tuple[str, ...] = ()

    def __init__(self, allow: Sequence[str] = ()) -> None:
        self.allow = tuple(allow)
        """Python modules whose code a manifest may reference, submodules included."""

    def vocabulary(self) -> tuple[object, ...]:
        return ()

    def adopt(self, module: nn.Module) -> None:
        pass

    def prepare(self, baked: BakedModel) -> None:
        check_allowed(baked.manifest.class_, self.allow, _where(baked))
        _arguments(baked)
        import torch  # noqa: F401

        find_factory(baked.manifest.class_, self.allow, _where(baked))

    def skeleton(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.skeleton import without_values

        return without_values(lambda: self._build(baked)).eval()

    def ordinary(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.assembly import relink, slots
        from prebake.weights.tensors import aligned, read_tensors

        weights = baked.manifest.weights
        module = self._build(baked)
        state: Any = OrderedDict(
            (name, aligned(tensor))
            for file in weights.files
            for name, tensor in read_tensors(baked.folder / file).items()
        )
        # without version metadata, modules treat a state dict as the oldest version and upgrade it
        state._metadata = getattr(module.state_dict(), "_metadata", None)
        state.update({name: state[stored] for name, stored in weights.aliases.items() if stored in state})
        found = module.load_state_dict(state, strict=False, assign=True)
        places = {slot.key: slot for slot in slots(module)}
        for name, stored in weights.aliases.items():  # assigning made two parameters of one tied tensor
            if name in places and stored in places:
                places[name].put(places[stored].tensor)
        relink(module)
        if found.missing_keys:
            raise LoadError(f"{baked.folder}: not baked: {', '.join(found.missing_keys[:5])}")
        return module.eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        return {}

    def _build(self, baked: BakedModel) -> nn.Module:
        return build(baked.manifest.class_, _arguments(baked), _where(baked), self.allow)


def build(factory: str, arguments: Mapping[str, Any], where: str, allow: Sequence[str]) -> nn.Module:
    """Call a `module:factory`. Raises ConfigError if it is not allowed, can't be imported or returns no module."""
    from torch import nn

    module = find_factory(factory, allow, where)(**arguments)
    if not isinstance(module, nn.Module):
        raise ConfigError(f"{where}: {factory} returned a {type(module).__name__}, not a torch.nn.Module")
    return module


def _where(baked: BakedModel) -> str:
    return f"{baked.folder}: class"


def with_folder(options: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The arguments in the options of a manifest; `folder` is one of them if the factory takes it."""
    return {**options.get("arguments", {}), **({"folder": folder} if options.get("folder") else {})}


def _arguments(baked: BakedModel) -> Mapping[str, Any]:
    options = Table(baked.manifest.options, f"{baked.folder}: options")
    found = {"arguments": options.take("arguments", dict, {}), "folder": options.take("folder", bool, False)}
    options.finish()
    return with_folder(found, baked.folder)
