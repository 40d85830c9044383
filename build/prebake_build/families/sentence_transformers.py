"""Models of sentence-transformers: the checkpoint's modules as `modules.json` lists them, loaded by the library."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prebake.baked import layout
from prebake.documents.messages import quote
from prebake.errors import ConfigError, PrebakeError, SourceError
from prebake_build.families.family import BuildFamily, Ordinary, Recipe
from prebake_build.families.files import kept_files
from prebake_build.families.transformers import config_text
from prebake_build.sources.selection import Wanted

_OWN = re.compile(r"sentence_transformers(\.\w+)+", re.ASCII)


class SentenceTransformersBuild(BuildFamily):
    example = "sentence-transformers:SentenceTransformer"
    pattern = re.compile(r"SentenceTransformer")
    no_inputs = "takes texts, not tensors"

    def hub(self, options: Mapping[str, Any]) -> Wanted:
        return Wanted(index="modules.json", folders=_folders)

    def load(self, recipe: Recipe, checkpoint: Path) -> Ordinary:
        import torch

        from prebake.families.sentence_transformers import assembled, networks
        from prebake_build.families.state_dicts import load_error

        where = f"models.{recipe.name}"
        folders = module_folders(checkpoint, where)
        wanted = None if recipe.dtype == "source" else getattr(torch, recipe.dtype)
        try:
            model, made = assembled(checkpoint, None, wanted)
        except (ImportError, PrebakeError):
            raise
        except Exception as error:  # the library raises any exception
            raise load_error(error, where, "SentenceTransformer") from error
        module = networks(model, made)
        texts = {}
        for path, part in made.items():
            config = f"{folders[path.partition('.')[0]]}config.json"
            dtype = str(part.dtype).removeprefix("torch.")
            if text := config_text(checkpoint / config, None if wanted is None else dtype, dequantized=False):
                texts[config] = text
        dtype = str(next(iter(made.values())).dtype if made else model.dtype or torch.float32)
        options = {"dtype": dtype.removeprefix("torch."), "networks": list(made)}
        return Ordinary(
            module=module.eval(),
            class_="SentenceTransformer",
            options=options,
            keep=kept_files(checkpoint),
            texts=texts,
            weights=_weights(model, made, folders),
            whole=_whole(model, made, folders),
            requires=("torch", "transformers", "sentence_transformers"),
        )


def _folders(text: str, where: str) -> list[str]:
    return [f"{entry['path']}/" if entry["path"] else "" for entry in modules_of(text, where)]


def module_folders(checkpoint: Path, where: str) -> dict[str, str]:
    """The names of the modules that `modules.json` lists, and their folders: empty, or with a slash at the end.

    Raises ConfigError if there is no such list or a module needs code outside of the library, and SourceError if the
    list is malformed.
    """
    if (checkpoint / "adapter_config.json").exists():
        raise ConfigError(
            f"{where}.source: this is an adapter, not a model: merge it into its base model first "
            "(peft: merge_and_unload), then bake the result"
        )
    path = checkpoint / "modules.json"
    if not path.is_file():
        raise ConfigError(
            f"{where}.source: not a checkpoint of sentence-transformers: it has no modules.json "
            '(for the bare network: class = "transformers:…")'
        )
    folders = {}
    for entry in modules_of(path.read_text(encoding="utf-8"), f"{where}: modules.json"):
        if not _OWN.fullmatch(entry["type"]):
            raise ConfigError(
                f"{where}.source: modules.json names {quote(entry['type'])}, which is remote code: only modules of "
                "sentence_transformers itself are loaded"
            )
        folders[entry["name"]] = f"{entry['path']}/" if entry["path"] else ""
    return folders


def modules_of(text: str, where: str) -> list[dict[str, str]]:
    """`name`, `path` and `type` of each module in a `modules.json`. Raises SourceError if it is malformed."""
    try:
        entries = [{key: entry[key] for key in ("name", "path", "type")} for entry in json.loads(text)]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{where}: is not a list of modules: {type(error).__name__}: {error}") from error
    for entry in entries:
        if not all(isinstance(value, str) for value in entry.values()):
            raise SourceError(f"{where}: expected strings for name, path and type")
        if entry["path"] and not layout.is_inside(entry["path"]):
            raise SourceError(f"{where}: {quote(entry['path'])} leaves the checkpoint")
    return entries


def _weights(model: Any, made: Mapping[str, Any], folders: Mapping[str, str]) -> dict[str, str]:
    """The file that the library reads each part's tensors from, and the prefix of their names."""
    prefixes = {path.partition(".")[0]: f"{path}." for path in made}
    if len(prefixes) != len(made):
        raise ConfigError("a module with several networks (Router) is not supported: bake its networks one by one")
    return {f"{folders[name]}{layout.WEIGHTS}": prefixes.get(name, f"{name}.") for name in model._modules}


def _whole(model: Any, made: Mapping[str, Any], folders: Mapping[str, str]) -> tuple[str, ...]:
    """The files of modules that are no networks of transformers: the library knows no shards of them."""
    networks = {path.partition(".")[0] for path in made}
    return tuple(f"{folders[name]}{layout.WEIGHTS}" for name in model._modules if name not in networks)
