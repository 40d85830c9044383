"""`prebake fetch`: writes checkpoints as upstream publishes them into a folder that frameworks can load from."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from prebake_build.cache.checkpoints import Cache
from prebake_build.declared.lock import Lock
from prebake_build.declared.spec import read_spec
from prebake_build.files.digest import md5_of
from prebake_build.sources.archives import unpack

if TYPE_CHECKING:
    from prebake_build.commands import Commands

SUMS = "md5.json"
"""File with the md5 sums of EasyOCR's files. EasyOCR compares files with its own table, which lacks the dummies."""

_EPILOG = """\
examples:
  prebake fetch --output checkpoints              every model of models.toml, to checkpoints/NAME
  prebake fetch --output checkpoints caption      only this one

A service that loads these with its frameworks' own loaders is the baseline for measurements (prebake measure).
"""


def add(commands: Commands) -> None:
    """Add the subcommand."""
    parser = commands.add_parser(
        "fetch", help="download checkpoints into a folder, unconverted", epilog=_EPILOG,
        description="Download the checkpoints of models.toml into a folder that their frameworks can load from.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", metavar="NAME", nargs="*", help="models to fetch (default: all)")
    parser.add_argument("--models", type=Path, metavar="FILE", default=Path("models.toml"), help="default: models.toml")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="build cache (default: PREBAKE_CACHE, ~/.cache/prebake)"
    )
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    for place in fetch(options.models, options.names, options.output, options.cache):
        print(place)
    return 0


def fetch(models: Path, names: Sequence[str], output: Path, cache_folder: Path | None = None) -> list[Path]:
    """Write the checkpoints into `output/NAME`, with EasyOCR's zips unpacked. Returns the folders. Raises
    PrebakeError."""
    spec = read_spec(models)
    path = models.with_suffix(".lock")
    lock = Lock.read(path) if path.exists() else None
    places = []
    with Cache(cache_folder) as cache:
        for model in spec.select(names):
            source = spec.open(model)
            print(f"{model.name}: fetching {model.source}", file=sys.stderr)
            resolved = lock.require(model.name, model.source) if lock else cache.resolve(source)
            place = output / model.name
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(cache.checkpoint(source, resolved), place)
            if model.family == "easyocr":
                _unzip(place)
            places.append(place)
    return places


def _unzip(folder: Path) -> None:
    for archive in sorted(folder.glob("*.zip")):
        unpack(archive, folder)
        archive.unlink()
    sums = {path.name: md5_of(path) for path in sorted(folder.glob("*.pth"))}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
