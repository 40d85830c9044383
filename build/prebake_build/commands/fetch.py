"""`prebake fetch`: writes checkpoints as upstream publishes them into a folder that frameworks can load from."""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from prebake.commands.arguments import HelpFormatter
from prebake.documents.messages import reason
from prebake.errors import ConfigError, PrebakeError
from prebake_build.cache.checkpoints import Cache
from prebake_build.declared.lock import Lock
from prebake_build.declared.spec import read_spec
from prebake_build.files.atomic import clear_leftovers, put_in_place, sync_tree
from prebake_build.files.digest import FULL, md5_of
from prebake_build.files.flock import locked_folder
from prebake_build.sources.archives import unpack

if TYPE_CHECKING:
    from prebake_build.commands import Commands

_WORK = ".fetching-"
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
        formatter_class=HelpFormatter,
    )  # fmt: skip
    parser.add_argument("names", metavar="NAME", nargs="*", help="models to fetch (default: all)")
    parser.add_argument("--models", type=Path, metavar="FILE", default=Path("models.toml"), help="default: models.toml")
    parser.add_argument("--output", type=Path, metavar="DIR", required=True)
    parser.add_argument(
        "--cache", type=Path, metavar="DIR", help="build cache (default: PREBAKE_CACHE, ~/.cache/prebake)"
    )
    parser.add_argument("--json", action="store_true", help="print the folders as JSON")
    parser.set_defaults(run=_run)


def _run(options: argparse.Namespace) -> int:
    places = fetch(options.models, options.names, options.output, options.cache)
    if options.json:
        print(json.dumps([{"name": place.name, "folder": str(place)} for place in places], indent=2))
        return 0
    for place in places:
        print(place)
    return 0


def fetch(models: Path, names: Sequence[str], output: Path, cache_folder: Path | None = None) -> list[Path]:
    """Write the checkpoints into `output/NAME`, with EasyOCR's zips unpacked. Returns the folders.

    Each folder is replaced whole. Raises ConfigError if the output can't be written to, and PrebakeError if the disk
    is full or a checkpoint can't be fetched; then the previous folder is unchanged.
    """
    spec = read_spec(models)
    path = models.with_suffix(".lock")
    lock = Lock.read(path) if path.exists() else None
    places = []
    with Cache(cache_folder) as cache:
        for model in spec.select(names):
            source = spec.open(model)
            print(f"{model.name}: fetching {model.source}", file=sys.stderr)
            resolved = lock.require(model.name, model.source) if lock else cache.resolve(source)
            checkpoint = cache.checkpoint(source, resolved)
            with _new_folder(output, model.name, sum(file.size for file in resolved.files)) as folder:
                shutil.copytree(checkpoint, folder)
                if model.family == "easyocr":
                    _unzip(folder)
            places.append(output / model.name)
    return places


@contextmanager
def _new_folder(output: Path, name: str, size: int) -> Iterator[Path]:
    """A path for a folder of at least `size` bytes, which becomes `output/name` if the block succeeds."""
    place = output / name
    try:
        output.mkdir(parents=True, exist_ok=True)
        with locked_folder(output):
            clear_leftovers(output, _WORK)
            if (free := shutil.disk_usage(output).free) < size:
                raise PrebakeError(
                    f"{output}: the checkpoint of {name} takes {size:,} bytes, and {free:,} are free: free some space, "
                    "or name another folder with --output"
                )
            work = Path(tempfile.mkdtemp(prefix=f"{_WORK}{name}.", dir=output))
            try:
                yield work / name
                sync_tree(work / name)
                put_in_place(work / name, place)
            finally:
                shutil.rmtree(work, ignore_errors=True)
    except (OSError, shutil.Error) as error:
        unchanged = " The previous folder is unchanged." if place.is_dir() else ""
        full = getattr(error, "errno", None) in FULL or any(os.strerror(code) in str(error) for code in FULL)
        way = "free some space, or name another folder with --output" if full else "name another folder with --output"
        told = os.strerror(FULL[0]) if full else reason(error)
        raise (PrebakeError if full else ConfigError)(
            f"{output}: cannot write the checkpoint of {name}: {told}: {way}.{unchanged}"
        ) from error


def _unzip(folder: Path) -> None:
    for archive in sorted(folder.glob("*.zip")):
        unpack(archive, folder)
        archive.unlink()
    sums = {path.name: md5_of(path) for path in sorted(folder.glob("*.pth"))}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")
