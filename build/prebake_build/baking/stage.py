"""The commands of the Dockerfile's stages: the part of `prebake bake` that determines the output, without its command.

`select` writes one model's part of the models file and its lock; `fetch` fetches its checkpoint, which needs the
network and perhaps a token; `bake` bakes what was fetched and needs neither. Docker caches the stages by content, so
adding or changing one model does not bake the others again. The stage contains only the modules that this one imports,
directly or indirectly, so a change in the service does not bake anything again either.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import tomli_w

from prebake.baked.model import BakedModel
from prebake.documents import toml
from prebake.documents.sizes import parse_size
from prebake.errors import ConfigError, PrebakeError
from prebake_build.baking.own_code import copy_code
from prebake_build.baking.writer import make_canonical
from prebake_build.declared.lock import Lock, LockedModel, resolution
from prebake_build.declared.spec import parse_shard_size, read_spec
from prebake_build.files.atomic import write_text

logger = logging.getLogger(__name__)

CACHE = "cache"
"""Folder with the checkpoint in the output of `fetch`, which `bake` reads."""
CODE = "code"
"""Folder with the project's modules that the model's factory needs, in the output of `select` and `fetch`."""
CHECKPOINTS = Path("/checkpoints")
"""Where the image build has the folder of the sources `path:FOLDER/…`."""


def select(models: Path, name: str, output: Path, project: Path | None = None) -> None:
    """Write `output/models.toml`, and `output/models.lock` if the models file has a lock, with one model.

    With `project`, also writes the project's modules that the model's factory needs, and a link to CHECKPOINTS for a
    source `path:FOLDER/…`. Leaves out what a bake recorded in the lock, because recording it must not cause another
    bake. Raises PrebakeError.
    """
    (model,) = read_spec(models).select([name])
    output.mkdir(parents=True, exist_ok=True)
    if project is not None:
        if model.family == "torch" and model.class_:
            copy_code(model.class_.partition(":")[0], project, output / CODE)
        scheme, _, folder = model.source.partition(":")
        if scheme == "path" and not Path(folder).is_absolute():
            (output / Path(folder).parts[0]).symlink_to(CHECKPOINTS)
    tables = toml.loads(models.read_text(encoding="utf-8"))["models"]
    write_text(output / "models.toml", tomli_w.dumps({"models": {name: tables[name]}}))
    path = models.with_suffix(".lock")
    if path.exists():
        locked = {key: replace(model, baked=None) for key, model in Lock.read(path).models.items() if key == name}
        write_text(output / "models.lock", Lock(models=locked).text)


def fetch_one(models: Path, name: str, output: Path) -> None:
    """Fetch the model's checkpoint through the build cache, and write all that `bake_one` needs into `output`.

    That is `models.toml`, `models.lock`, which records what was fetched even if there was no lock before, and a cache
    that contains only this checkpoint: in a later step, the build's cache mount may be a different one or empty
    (`--no-cache`, pruning). Raises PrebakeError.
    """
    from prebake_build.cache.checkpoints import Cache

    spec, path = read_spec(models), models.with_suffix(".lock")
    (model,) = spec.select([name])
    source = spec.open(model)
    with Cache() as cache:
        resolved = resolution(model, source, Lock.read(path) if path.exists() else None, cache, name)
        logger.info("%s: fetching %s", name, model.source)
        checkpoint = cache.checkpoint(source, resolved)
        with Cache(output / CACHE) as carried:
            carried.adopt(source, resolved, checkpoint)
    write_text(output / "models.toml", models.read_text(encoding="utf-8"))
    if (models.parent / CODE).is_dir():
        shutil.copytree(models.parent / CODE, output / CODE)
    locked = LockedModel(source=model.source, resolved=resolved)
    write_text(output / "models.lock", Lock(models={name: locked}).text)


def bake_one(models: Path, name: str, output: Path, *, layers: int = 0, shard_size: int | None = None) -> None:
    """Bake what `fetch_one` wrote next to `models` into `output/NAME`, and set the mtime of `output` to 0.

    With `layers`, moves the shards of a model that was split to `/out.1/models/NAME/…` and so on, where `output` is
    `/out/models`: each folder becomes a layer of the image. Several shards share the last of too few folders.

    Contacts no source, so the step needs no network. The worker imports from the project's modules that were selected.
    Converted models are taken from the build cache and kept there if its folder exists, which a cache mount makes.
    Raises PrebakeError.
    """
    from prebake_build.baking.bake import bake
    from prebake_build.cache.checkpoints import Cache
    from prebake_build.cache.converted import ENV_CONVERTED_SIZE, LIMIT, Conversions

    spec, path = read_spec(models), models.with_suffix(".lock")
    lock = Lock.read(path) if path.exists() else None
    if (code := models.parent / CODE).is_dir():
        sys.path.insert(0, str(code))
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))
    converted = Conversions(limit=parse_size(os.environ.get(ENV_CONVERTED_SIZE) or str(LIMIT), ENV_CONVERTED_SIZE))
    with Cache(models.parent / CACHE, offline=True) as cache:
        (folder,) = bake(spec, [name], lock, cache, output, force=False, shard_size=shard_size,
                         converted=converted if converted.place.is_dir() else None)  # fmt: skip
    _spread(BakedModel.open(folder), output, layers)
    os.utime(output, (0, 0))


def _spread(baked: BakedModel, output: Path, layers: int) -> None:
    """Move the shards into as many trees beside `output`'s parent. Raises ConfigError if there are not enough."""
    shards, name = baked.shards, baked.name
    if layers > len(shards):
        raise ConfigError(
            f"models.{name}: was split into {len(shards)} files of weights, not {layers}: "
            + (
                f'set SHARDS in docker-bake.hcl to {{ "{name}" = {len(shards)} }}'
                if shards
                else f"remove {name} from SHARDS in docker-bake.hcl"
            )
        )
    if len(shards) > layers:
        logger.warning('%s: was split into %d files: with SHARDS = { "%s" = %d } in docker-bake.hcl, each has a layer '
                       "of its own", name, len(shards), name, len(shards))  # fmt: skip
    for number, shard in enumerate(shards if layers else (), 1):
        tree = output.parent.with_name(f"{output.parent.name}.{min(number, layers)}")
        place = tree / output.name / name / shard
        place.parent.mkdir(parents=True, exist_ok=True)
        (baked.folder / shard).rename(place)
        make_canonical(tree)
        make_canonical(baked.folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one of the three commands; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m prebake_build.baking.stage", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for command, run, text in (
        ("select", select, "write one model's part of the models file"),
        ("fetch", fetch_one, "fetch one model's checkpoint"),
        ("bake", bake_one, "bake what was fetched, without network"),
    ):
        adding = commands.add_parser(command, help=text, description=text)
        adding.add_argument("name", metavar="NAME", help="the model's table in the models file")
        adding.add_argument("--models", type=Path, metavar="FILE", required=True)
        adding.add_argument("--output", type=Path, metavar="DIR", required=True)
        if command == "select":
            adding.add_argument("--project", type=Path, metavar="DIR", help="folder with the code of factories")
        if command == "bake":
            adding.add_argument("--layers", type=int, metavar="N", default=os.environ.get("SHARDS") or 0,
                                help="image layers for the model's shards (default: SHARDS, 0)")  # fmt: skip
            adding.add_argument("--shard-size", type=lambda text: parse_shard_size(text, "--shard-size"),
                                metavar="SIZE", default=os.environ.get("SHARD_SIZE") or None,
                                help="bytes of weights in a file at most (default: SHARD_SIZE)")  # fmt: skip
        adding.set_defaults(run=run)
    options = vars(parser.parse_args(argv))
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.pop("run")(**options)
    except PrebakeError as error:
        print(f"prebake: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
