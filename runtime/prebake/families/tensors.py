"""A file of tensors, for code that reads it with `torch.load`: no network, and so no code that a manifest could name.

The module has the tensors as buffers; what the service uses is `LoadedModel.tensors`, the object that
`torch.load(file, weights_only=True)` returns.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from prebake.baked.model import BakedModel
from prebake.documents.messages import quote
from prebake.documents.table import Table
from prebake.errors import DocumentError

if TYPE_CHECKING:
    from torch import nn

CLASS = "tensors"
NAME = "file"
"""Option: the path of the file in its source."""


class TensorsFamily:
    install = "torch"
    build = "prebake_build.families.tensors:TensorsBuild"
    packages: tuple[str, ...] = ()
    """None: without a constructor, a structure would save nothing."""
    modules: str = ""
    without_torch: tuple[str, ...] = ()

    def __init__(self, allow: Sequence[str] = ()) -> None:
        pass

    def vocabulary(self) -> tuple[object, ...]:
        return ()

    def adopt(self, module: nn.Module) -> None:
        pass

    def prepare(self, baked: BakedModel) -> None:
        if baked.manifest.class_ != CLASS:
            raise DocumentError(f"{baked.folder}: class: {quote(baked.manifest.class_)} is not {quote(CLASS)}")
        options = Table(baked.manifest.options, f"{baked.folder}: options")
        options.maybe(NAME, str)  # older baked folders lack it
        options.finish()
        import torch  # noqa: F401

    def skeleton(self, baked: BakedModel) -> nn.Module:
        import torch

        from prebake.baked.header import read_header
        from prebake.modules.saved_object import SavedObject, read_shape
        from prebake.weights.tensors import DTYPES

        tensors = {
            baked.prefix(path) + name: torch.empty(entry.shape, dtype=DTYPES[entry.dtype], device="meta")
            for path in baked.weights
            for name, entry in read_header(path).entries.items()
        }
        tensors |= {name: tensors[stored] for name, stored in baked.manifest.weights.aliases.items()}
        return SavedObject(read_shape(baked), tensors).eval()

    def ordinary(self, baked: BakedModel) -> nn.Module:
        from prebake.modules.saved_object import SavedObject, read_shape
        from prebake.weights.tensors import aligned, read_tensors

        read = {
            baked.prefix(path) + name: aligned(tensor)
            for path in baked.weights
            for name, tensor in read_tensors(path).items()
        }
        read |= {name: read[stored] for name, stored in baked.manifest.weights.aliases.items()}
        return SavedObject(read_shape(baked), read).eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        from prebake.modules.saved_object import SavedObject

        assert isinstance(module, SavedObject)
        return {"tensors": module.object()}
