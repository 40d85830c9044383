"""`prebake bake`: fetch, convert, prove and write the models of `models.toml`."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from prebake.baked.manifest import Manifest
from prebake.baked.model import BakedModel
from prebake.commands.arguments import HelpFormatter
from prebake.documents.sizes import format_size, parse_size
from prebake.errors import ConfigError, IntegrityError
from prebake_build.baking.bake import bake
from prebake_build.cache.checkpoints import Cache
from prebake_build.cache.converted import ENV_CONVERTED_SIZE, LIMIT, Conversions
from prebake_build.declared.lock import Lock
from prebake_build.declared.locked import refuse, require_locked
from prebake_build.declared.result import Baked, changed_result
from prebake_build.declared.spec import ENV_SHARD_SIZE, SHARD_SIZE, ModelSpec, Spec, parse_shard_size, read_spec
from prebake_build.files.progress import telling
from prebake_build.images.documents import check_name, check_platform
from prebake_build.images.layers import COMPRESSIONS, layer_digest, shard_digests
from prebake_build.images.pack import PLATFORMS, Packed, Packing, check_place, pack

if TYPE_CHECKING:
    from prebake_build.commands import Commands

T = TypeVar("T")
_EPILOG = """\
examples:
  prebake bake --output models                              every model of models.toml
  prebake bake --models models.dummy.toml caption --output models    one model, no network needed
  prebake bake --output models --locked          exactly what models.lock records, or every difference
  prebake bake --output models --oci weights     the models, and an OCI image layout with a layer for each

Exit codes: 0 baked; 1 a checkpoint that cannot be fetched or proven; 2 wrong use or configuration.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "bake", help="fetch, convert, prove and write the models", epilog=_EPILOG,
        description="Fetch the checkpoints that models.lock names, convert them to safetensors, prove that every "
        "bit arrived, and write one folder per model. An existing folder is replaced atomically.",
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", metavar="NAME", nargs="*", help="models to bake (default: all)")
    parser.add_argument("--models", type=Path, metavar="FILE", default=Path("models.toml"), help="default: models.toml")
    parser.add_argument(
        "--lock", type=Path, metavar="FILE", help="default: the .lock next to the models file, if it exists"
    )
    parser.add_argument("--output", type=Path, metavar="DIR", required=True, help="root of baked models")
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="build cache (default: PREBAKE_CACHE, ~/.cache/prebake)"
    )
    parser.add_argument(
        "--shard-size", type=_shard_size, metavar="SIZE", default=os.environ.get(ENV_SHARD_SIZE) or None,
        help="bytes of weights in a file at most, for models whose table has no shard_size "
        f"(default: {ENV_SHARD_SIZE}, {format_size(SHARD_SIZE)})",
    )  # fmt: skip
    parser.add_argument(
        "--converted-size", type=_converted_size, metavar="SIZE", default=os.environ.get(ENV_CONVERTED_SIZE) or LIMIT,
        help="bytes of baked models that the build cache keeps, the most recently used; 0: none are taken or kept "
        f"(default: {ENV_CONVERTED_SIZE}, {format_size(LIMIT)})",
    )  # fmt: skip
    parser.add_argument("--force", action="store_true",
                        help="convert even if the folder is up to date, or the build cache has the model")  # fmt: skip
    result = parser.add_mutually_exclusive_group()
    result.add_argument("--record", action="store_true",
                        help="record the result (digests, versions, options) in the lock")  # fmt: skip
    result.add_argument("--locked", action="store_true",
                        help="bake exactly what the lock records, or fail with every difference")  # fmt: skip
    parser.add_argument("--json", action="store_true", help="print what was baked as JSON")
    _add_image_options(parser)
    parser.set_defaults(run=_run)


def _add_image_options(parser: argparse.ArgumentParser) -> None:
    image = parser.add_argument_group("an image of the models (no engine needed)")
    image.add_argument("--oci", type=Path, metavar="DIR", help="write an OCI image layout; an existing one is replaced")
    image.add_argument("--tag", type=_checked(check_name), metavar="NAME",
                       help="tag, or whole name (registry.example/weights:v2); default: latest")  # fmt: skip
    image.add_argument("--compression", choices=COMPRESSIONS,
                       help="of the layers (default: uncompressed)")  # fmt: skip
    image.add_argument("--align", action="store_true",
                       help="start weights on pages of the tar files (other digests than the engine's)")  # fmt: skip
    image.add_argument("--platform", metavar="OS/ARCH", action="append", type=_checked(check_platform),
                       help=f"platform of an image; repeatable (default: {' and '.join(PLATFORMS)})")  # fmt: skip
    image.add_argument("--annotation", metavar="KEY=VALUE", action="append", default=[], type=_annotation,
                       help="annotation and label of the images; repeatable")  # fmt: skip


def _shard_size(text: str) -> int:
    return _checked(lambda text: parse_shard_size(text, "size"))(text)


def _checked(parse: Callable[[str], T]) -> Callable[[str], T]:
    """The parser of an argument; what it refuses is wrong use."""

    def parsed(text: str) -> T:
        try:
            return parse(text)
        except ConfigError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parsed


def _converted_size(text: str) -> int:
    try:
        return parse_size(text, "size")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def _annotation(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise argparse.ArgumentTypeError(f'"{text}" is not of the form KEY=VALUE')
    return key, value


def _check_image_options(options: argparse.Namespace) -> None:
    """Raises ConfigError for what would fail after hours of baking, or have no effect."""
    given = [name for name in ("tag", "compression", "align", "platform", "annotation") if getattr(options, name)]
    if options.oci:
        check_place(options.oci.resolve())
    elif given:
        raise ConfigError(f"--{given[0]}: describes an image, and there is none without --oci DIR")


def _pack(options: argparse.Namespace, folders: list[Path]) -> Packed:
    return pack(
        [BakedModel.open(folder) for folder in folders],
        options.oci,
        Packing(tag=options.tag or "latest", compression=options.compression or "uncompressed", align=options.align,
                platforms=options.platform or PLATFORMS, annotations=dict(options.annotation)),
    )  # fmt: skip


def _record(spec: Spec, folders: Sequence[Path], lock: Lock | None, path: Path) -> None:
    """Record the baked models' digests in the lock, next to the sources' files."""
    if lock is None:
        raise ConfigError(f"{path}: there is no lock to record the result in: run `prebake lock` first")
    for folder in folders:
        (model,) = spec.select([folder.name])
        if not lock.is_open(model.name, model.source):
            lock = lock.with_baked(model.name, _result(model, folder))
    lock.write(path)


def _result(model: ModelSpec, folder: Path) -> Baked:
    baked = BakedModel.open(folder)
    with telling(f"{model.name}: hashing its layers", sum(file.size for file in baked.manifest.files)):
        return Baked.of(model, baked.manifest, layer_digest(baked), shard_digests(baked))


def _bake_locked(options: argparse.Namespace, spec: Spec, lock: Lock | None, path: Path) -> list[Path]:
    """Bake exactly what the lock records. Raises ConfigError or IntegrityError with the differences of all models."""
    if lock is None:
        raise ConfigError(f"{path}: there is no lock: run `prebake lock`, then `prebake bake --record`")
    expected = require_locked(lock, spec.select(options.names))

    def accept(model: ModelSpec, folder: Path) -> None:
        if lines := changed_result(expected[model.name], _result(model, folder)):
            raise refuse(model.name, lines)

    folders, failures = [], []
    converted = Conversions(options.cache, limit=options.converted_size)
    with Cache(options.cache) as cache:
        for model in spec.select(options.names):
            try:
                folders += bake(spec, [model.name], lock, cache, options.output, force=options.force,
                                shard_size=options.shard_size, accept=accept, converted=converted)  # fmt: skip
            except IntegrityError as error:
                failures.append(str(error))
    if failures:
        raise IntegrityError("\n".join(failures))
    return folders


def _run(options: argparse.Namespace) -> int:
    _check_image_options(options)
    spec = read_spec(options.models)
    path: Path = options.lock or options.models.with_suffix(".lock")
    lock = Lock.read(path) if options.lock or path.exists() else None
    if options.locked:
        folders = _bake_locked(options, spec, lock, path)
    else:
        with Cache(options.cache) as cache:
            folders = bake(spec, options.names, lock, cache, options.output, force=options.force,
                           shard_size=options.shard_size,
                           converted=Conversions(options.cache, limit=options.converted_size))  # fmt: skip
    if options.record:
        _record(spec, folders, lock, path)
    manifests = [Manifest.read(folder) for folder in folders]
    packed = _pack(options, folders) if options.oci else None
    if options.json:
        print(json.dumps([_document(folder, manifest, packed)
                          for folder, manifest in zip(folders, manifests, strict=True)], indent=2))  # fmt: skip
        return 0
    for manifest in manifests:
        layer = f"  layer {packed.layers[manifest.name].digest}" if packed else ""
        if packed and (shards := packed.shards.get(manifest.name)):
            layer += f" and {len(shards)} of shards"
        print(f"{manifest.name}  {manifest.set_digest}  {manifest.weights.bytes:,} bytes{layer}")
    if packed:
        print(f"{options.oci}:{options.tag or 'latest'}  {packed.digest}")
    return 0


def _document(folder: Path, manifest: Manifest, packed: Packed | None) -> dict[str, Any]:
    layer: dict[str, Any] = {"layer_digest": packed.layers[manifest.name].digest} if packed else {}
    if packed and (shards := packed.shards.get(manifest.name)):
        layer["shard_digests"] = [shard.digest for shard in shards]
    return {"name": manifest.name, "folder": str(folder), "set_digest": manifest.set_digest, **layer}
