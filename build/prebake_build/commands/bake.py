"""`prebake bake`: fetch, convert, prove and write the models of `models.toml`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError
from prebake_build.baking.bake import bake
from prebake_build.cache.checkpoints import Cache
from prebake_build.declared.lock import Baked, Lock
from prebake_build.declared.spec import read_spec

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_EPILOG = """\
examples:
  prebake bake --output models                              every model of models.toml
  prebake bake --models models.dummy.toml caption --output models    one model, no network needed

Exit codes: 0 baked; 1 a checkpoint that cannot be fetched or proven; 2 wrong use or configuration.
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "bake", help="fetch, convert, prove and write the models", epilog=_EPILOG,
        description="Fetch the checkpoints that models.lock names, convert them to safetensors, prove that every "
        "bit arrived, and write one folder per model. An existing folder is replaced atomically.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
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
    parser.add_argument("--force", action="store_true", help="bake even if the folder is up to date")
    parser.add_argument("--record", action="store_true", help="record the result (digest, converter) in the lock")
    parser.add_argument("--json", action="store_true", help="print what was baked as JSON")
    parser.set_defaults(run=_run)


def _record(manifests: list[Manifest], lock: Lock | None, path: Path) -> None:
    """Record the baked model's digest in the lock, next to the source's files."""
    if lock is None:
        raise ConfigError(f"{path}: there is no lock to record the result in: run `prebake lock` first")
    for manifest in manifests:
        if not lock.is_open(manifest.name, manifest.source.uri):
            lock = lock.with_baked(
                manifest.name, Baked(converter=dict(manifest.converter), set_digest=manifest.set_digest)
            )
    lock.write(path)


def _run(options: argparse.Namespace) -> int:
    spec = read_spec(options.models)
    path: Path = options.lock or options.models.with_suffix(".lock")
    lock = Lock.read(path) if options.lock or path.exists() else None
    with Cache(options.cache) as cache:
        folders = bake(spec, options.names, lock, cache, options.output, force=options.force)
    manifests = [Manifest.read(folder) for folder in folders]
    if options.record:
        _record(manifests, lock, path)
    if options.json:
        print(json.dumps([{"name": m.name, "folder": str(folder), "set_digest": m.set_digest}
                          for m, folder in zip(manifests, folders, strict=True)], indent=2))  # fmt: skip
    else:
        for manifest in manifests:
            print(f"{manifest.name}  {manifest.set_digest}  {manifest.weights.bytes:,} bytes")
    return 0
