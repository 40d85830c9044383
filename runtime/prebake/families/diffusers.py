"""Pipelines of diffusers: every network in one is mapped; schedulers, tokenizers and processors are read from files.

The folder stays one that `DiffusionPipeline.from_pretrained` reads: each component has its folder with its own
configuration and weights. The networks are one module, a `ModuleDict` by the components' names. The pipeline comes from
`from_pretrained` itself, which takes components that exist already and loads the others.

`model_index.json` is data that names classes. Only classes of diffusers and transformers are looked up, each checked
for its base class. diffusers imports Python files that lie beside the weights, so a folder that has any is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prebake.baked.model import BakedModel
from prebake.documents.messages import nearest, quote
from prebake.documents.table import Table
from prebake.errors import ConfigError, DocumentError
from prebake.families import compat
from prebake.families.transformers import TransformersFamily, dtype_named, model_class
from prebake.families.transformers import skeleton as transformers_skeleton

if TYPE_CHECKING:
    from torch import nn

INDEX = "model_index.json"


class DiffusersFamily(TransformersFamily):
    install: str = "'prebake[diffusers]'"
    build: str = "prebake_build.families.diffusers:DiffusersBuild"
    packages: tuple[str, ...] = ()
    """None: constructors of pipelines take less time without values (UNet of Stable Diffusion: 80 ms) than a structure
    would save, and a pipeline's own modules hold objects that a structure can't."""
    modules: str = ""

    def prepare(self, baked: BakedModel) -> None:
        options = Table(baked.manifest.options, f"{baked.folder}: options")
        for name, dtype in options.mapping("dtypes", str).items():
            dtype_named(dtype, f"{options.at('dtypes')}.{name}")
        options.strings("frozen", [])
        options.finish()
        components(baked.folder, str(baked.folder))
        compat.torchvision_operators()
        pipeline_class(baked.manifest.class_, f"{baked.folder}: class")

    def skeleton(self, baked: BakedModel) -> nn.Module:
        from torch import nn

        libraries = components(baked.folder, str(baked.folder))
        made = {}
        for name, dtype in _dtypes(baked).items():
            if name not in libraries:
                raise DocumentError(f"{baked.folder}: options.dtypes.{name}: {INDEX} has no such component")
            made[name] = _network(*libraries[name], baked.folder / name, dtype)
        module = nn.ModuleDict(made)
        frozen = set(baked.manifest.options.get("frozen", ()))
        for name, parameter in module.named_parameters():
            parameter.requires_grad_(name not in frozen)
        return module.eval()

    def ordinary(self, baked: BakedModel) -> nn.Module:
        return networks(assembled(baked.folder, baked.manifest.class_, dtype=_dtypes(baked))).eval()

    def equip(self, baked: BakedModel, module: nn.Module) -> Mapping[str, Any]:
        from transformers import PreTrainedModel

        from prebake.families.construction import loaded_by

        networks, libraries = dict(cast(Any, module).items()), components(baked.folder, str(baked.folder))
        # a model of transformers that diffusers defines itself: if it is given, diffusers warns about its type
        own = {name for name, part in networks.items()
               if isinstance(part, PreTrainedModel) and libraries[name][0] != "transformers"}  # fmt: skip
        given = {name: part for name, part in networks.items() if name not in own}
        with loaded_by(lambda cls, path, _: networks[Path(path).name], []):
            # no network is loaded: without the argument, the library recommends accelerate for it
            pipeline = assembled(baked.folder, baked.manifest.class_, low_cpu_mem_usage=False, **given)
        return {"pipeline": pipeline}


def pipeline_class(name: str, where: str) -> Any:
    """The pipeline class of this name. Raises ConfigError if the installed diffusers has no such pipeline."""
    import diffusers

    found = getattr(diffusers, name, None) if name.isidentifier() and name[0].isupper() else None
    if not (isinstance(found, type) and issubclass(found, diffusers.DiffusionPipeline)):
        known = [known for known in diffusers._import_structure.get("pipelines", ()) if known.endswith("Pipeline")]
        raise ConfigError(
            f"{where}: diffusers {diffusers.__version__} has no pipeline {quote(name)}{nearest(name, known)}"
        )
    return found


def assembled(folder: Path, class_: str, **given: Any) -> Any:
    """The pipeline of the folder, by the library's own function; `given` are components, and `dtype`."""
    components(folder, str(folder))
    if "dtype" in given:
        given[dtype_argument()] = given.pop("dtype")
    return pipeline_class(class_, str(folder)).from_pretrained(folder, local_files_only=True, **given)


def networks(pipeline: Any) -> nn.Module:
    """The components of a pipeline that are networks, by their names."""
    from torch import nn

    return nn.ModuleDict({name: part for name, part in pipeline.components.items() if isinstance(part, nn.Module)})


def components(folder: Path, where: str) -> dict[str, tuple[str, str]]:
    """Name → library and class of each component in the folder's `model_index.json`, without those that are null.

    A library is `diffusers`, `transformers`, or one of diffusers' own pipeline packages, which is not imported here.
    Raises DocumentError if the file is malformed, and ConfigError for code that comes with the weights.
    """
    path = folder / INDEX
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        found = {name: value for name, value in document.items() if isinstance(value, list)}
        class_ = document.get("_class_name")
    except (OSError, ValueError, AttributeError) as error:
        raise DocumentError(f"{where}: {INDEX}: is not the index of a pipeline: {error}") from error
    if not isinstance(class_, str):
        raise ConfigError(f"{where}: {INDEX} names a pipeline of its own, which is remote code")
    if code := sorted(path.relative_to(folder).as_posix() for path in (*folder.glob("*.py"), *folder.glob("*/*.py"))):
        raise ConfigError(f"{where}: {quote(code[0])} is code beside weights, which diffusers would import")
    parts = {
        name: value for name, value in found.items() if len(value) == 2 and any(type(item) is str for item in value)
    }
    for name, value in parts.items():
        if not (name.isidentifier() and all(type(item) is str and item.isidentifier() for item in value)):
            raise DocumentError(f"{where}: {INDEX}: {quote(name)}: expected a library and a class, or two nulls")
    return {name: (library, class_) for name, (library, class_) in parts.items()}


def _network(library: str, class_: str, folder: Path, dtype: Any) -> Any:
    import diffusers
    from diffusers import pipelines

    from prebake.modules.skeleton import default_dtype, without_values

    where = f"{folder.parent}: {INDEX}: {folder.name}"
    if library == "transformers":
        return transformers_skeleton(model_class(class_, where), folder, dtype)
    if library != "diffusers":  # one of diffusers' packages, such as stable_diffusion
        if library not in diffusers.pipelines._import_structure:
            raise ConfigError(
                f"{where}: {quote(library)} is neither diffusers, transformers nor a pipeline of diffusers"
            )
        found = getattr(getattr(pipelines, library), class_, None)
        from transformers import PreTrainedModel

        if isinstance(found, type) and issubclass(found, PreTrainedModel):
            return transformers_skeleton(found, folder, dtype)
    else:
        found = getattr(diffusers, class_, None)
    if not (isinstance(found, type) and issubclass(found, diffusers.ModelMixin)):
        raise ConfigError(f"{where}: {quote(class_)} of {library} is not a network")
    cls: Any = found
    config, unused, _ = cls.load_config(folder, return_unused_kwargs=True, return_commit_hash=True)
    with default_dtype(dtype):
        module = without_values(lambda: cls.from_config(config, **unused))
    module.register_to_config(_name_or_path=str(folder))
    return module.eval()


def _dtypes(baked: BakedModel) -> dict[str, Any]:
    dtypes = baked.manifest.options["dtypes"]
    return {name: dtype_named(dtype, f"{baked.folder}: options.dtypes.{name}") for name, dtype in dtypes.items()}


def dtype_argument() -> str:
    """`dtype`, or the name that older versions know."""
    from diffusers.utils import deprecation_utils

    return "dtype" if hasattr(deprecation_utils, "_resolve_dtype") else "torch_dtype"
