"""Models of sentence-transformers: `SentenceTransformer` with all its modules.

The networks in it are mapped: each transformers model, and each other module that has tensors (Dense, LayerNorm). The
rest (tokenizer, prompts, pooling, similarity) comes from the library's own constructor on the baked folder, which gets
the mapped networks where it would load them: `PreTrainedModel.from_pretrained` returns them in this thread. So every
version of the library builds what it always builds.

The networks are one module whose state dict has the names of the `SentenceTransformer`'s.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prebake.baked.model import BakedModel
from prebake.documents.table import Table
from prebake.errors import LoadError
from prebake.families import compat
from prebake.families.transformers import TransformersFamily, dtype_named, skeleton

if TYPE_CHECKING:
    from torch import nn

    from prebake.families.construction import Make


class SentenceTransformersFamily(TransformersFamily):
    install: str = "'prebake[sentence-transformers]'"
    build: str = "prebake_build.families.sentence_transformers:SentenceTransformersBuild"
    packages: tuple[str, ...] = ("torch", "transformers", "sentence_transformers")
    modules: str = rf"(?:{TransformersFamily.modules})|sentence_transformers\.(\w+\.)*(modules|models)(\.[A-Za-z]\w*)?"

    def prepare(self, baked: BakedModel) -> None:
        _check_options(baked)
        compat.torchvision_operators()
        import sentence_transformers  # noqa: F401

    def skeleton(self, baked: BakedModel) -> nn.Module:
        dtype = _dtype(baked)

        def make(cls: Any, path: str, given: Mapping[str, Any]) -> Any:
            return skeleton(cls, Path(path), dtype, config=given.get("config"))

        return networks(*assembled(baked.folder, make, dtype, "meta")).eval()  # it moves all tensors to its device

    def ordinary(self, baked: BakedModel) -> nn.Module:
        return networks(*assembled(baked.folder, None, _dtype(baked))).eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        from transformers import PreTrainedModel

        found = {path: part for path, part in module.named_modules() if isinstance(part, PreTrainedModel)}
        waiting = [found[path] for path in baked.manifest.options["networks"]]
        device = str(next((parameter.device for parameter in module.parameters()), "cpu"))
        model, made = assembled(baked.folder, lambda *_: waiting.pop(0), _dtype(baked), device)
        for path, part in others(model, made).items():
            model._modules[path] = module.get_submodule(path)
            model._modules[path].train(part.training)
        return {"model": model}


def assembled(folder: Path, make: Make | None, dtype: Any, device: str = "cpu") -> tuple[Any, dict[str, Any]]:
    """The `SentenceTransformer` of the folder, and the transformers models in it by their paths, in the order in which
    they were made. `make` makes these; None loads them as the library does. The dtype None is that of the checkpoint.

    Modules of other packages, which need remote code, are refused by the library.
    """
    from sentence_transformers import SentenceTransformer

    from prebake.families.construction import loaded_by

    made: list[Any] = []
    with loaded_by(make, made):
        model = SentenceTransformer(
            str(folder),
            device=device,
            local_files_only=True,
            trust_remote_code=False,
            model_kwargs={"dtype": "auto" if dtype is None else dtype},
        )
    paths = {id(part): path for path, part in model.named_modules()}
    if lost := [type(part).__name__ for part in made if id(part) not in paths]:
        raise LoadError(f"{folder}: SentenceTransformer loads {', '.join(lost)}, but has it in no module")
    return model, {paths[id(part)]: part for part in made}


def networks(model: Any, made: Mapping[str, Any]) -> nn.Module:
    """Every part of a `SentenceTransformer` with tensors, under its path there."""
    from torch import nn

    top = nn.ModuleDict()
    for path, part in {**made, **others(model, made)}.items():
        owner = top
        *folders, name = path.split(".")
        for step in folders:
            if step not in owner:
                owner[step] = nn.ModuleDict()
            owner = owner[step]  # type: ignore[assignment]
        owner[name] = part
    return top


def others(model: Any, made: Mapping[str, Any]) -> dict[str, Any]:
    """The modules of a `SentenceTransformer` that have tensors, and no transformers model."""
    from prebake.modules.assembly import slots

    holding = {path.partition(".")[0] for path in made}
    return {name: part for name, part in model._modules.items() if name not in holding and any(slots(part))}


def _check_options(baked: BakedModel) -> None:
    options = Table(baked.manifest.options, f"{baked.folder}: options")
    options.take("dtype", str)
    options.strings("networks")
    options.finish()
    _dtype(baked)


def _dtype(baked: BakedModel) -> Any:
    return dtype_named(str(baked.manifest.options["dtype"]), f"{baked.folder}: options.dtype")
