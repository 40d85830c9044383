"""The service without Prebake: what starts are measured against.

It imports everything, loads every model in its constructor, one after another, from checkpoints as upstream
publishes them, with three tries for Florence-2, and opens its port when all are there. Requests are answered
by the same code as the baked service's, so that a comparison shows the start alone.

`python -m prebake_build.naive prepare` puts the checkpoints where the frameworks expect them, as a download
would; `python -m prebake_build.naive serve` is the service.
"""

from __future__ import annotations

import argparse
import json
import logging
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from prebake import compat, layout, timeline
from prebake.analyzer import CAPTION, FLORENCE, OCR
from prebake.errors import ConfigError, PrebakeError, UnknownModelError
from prebake.models import State, Status

SUMS = "md5.json"
"""Beside EasyOCR's files: their md5 sums. EasyOCR holds files against its own table, which dummies are not in."""


class NaiveModels:
    """All models, loaded when this returns. Offers what `prebake.service` asks of models."""

    ready = True

    def __init__(self, root: Path) -> None:
        with timeline.span("import"):
            compat.torchvision_operators()
            import easyocr
            import torch  # noqa: F401
            import transformers

            transformers.BlipForConditionalGeneration  # noqa: B018  # transformers imports a class when it is named
            transformers.BlipProcessor  # noqa: B018
        self._models: dict[str, Any] = {}
        if (root / CAPTION).is_dir():
            with timeline.span("from_pretrained", CAPTION):
                self._models[CAPTION] = _transformers(
                    transformers.BlipForConditionalGeneration, transformers.BlipProcessor, root / CAPTION
                )
        if (root / OCR).is_dir():
            with timeline.span("easyocr.Reader", OCR):
                self._models[OCR] = _reader(easyocr, root / OCR)
        if (root / FLORENCE).is_dir():
            with timeline.span("from_pretrained", FLORENCE):
                self._models[FLORENCE] = _three_tries(root / FLORENCE)
        if not self._models:
            raise ConfigError(f"{root}: holds no checkpoint (run: python -m prebake_build.naive prepare)")

    def __getitem__(self, name: str) -> Any:
        if name not in self._models:
            raise UnknownModelError(f"there is no model {name} (there are: {', '.join(self._models)})")
        return self._models[name]

    def __contains__(self, name: object) -> bool:
        return name in self._models

    def status(self) -> tuple[Status, ...]:
        return tuple(Status(name=name, state=State.READY, required=True, tier="ordinary") for name in self._models)


def _transformers(model: Any, processor: Any, folder: Path) -> SimpleNamespace:
    return SimpleNamespace(model=model.from_pretrained(folder), processor=processor.from_pretrained(folder))


def _three_tries(folder: Path) -> SimpleNamespace:
    import transformers

    for last in (False, False, True):
        try:
            return _transformers(transformers.Florence2ForConditionalGeneration, transformers.AutoProcessor, folder)
        except (OSError, ValueError, RuntimeError):
            if last:
                raise
    raise AssertionError("unreachable")


def _reader(easyocr: Any, folder: Path) -> SimpleNamespace:
    from easyocr.easyocr import detection_models, recognition_models

    sums = json.loads((folder / SUMS).read_text(encoding="utf-8"))
    for table in (detection_models, *recognition_models.values()):
        for entry in table.values():
            entry["md5sum"] = sums.get(entry["filename"], entry["md5sum"])
    return SimpleNamespace(reader=easyocr.Reader(
        ["ko", "en"], gpu=False, model_storage_directory=str(folder), user_network_directory=str(folder),
        download_enabled=False, verbose=False,
    ))  # fmt: skip


def prepare(models: Path, names: Sequence[str], output: Path, cache_folder: Path | None = None) -> None:
    """Fetch the checkpoints of `models.toml` into `output/NAME`, as their frameworks expect them on disk.

    Raises PrebakeError.
    """
    from prebake_build.cache import Cache
    from prebake_build.lock import Lock
    from prebake_build.spec import read_spec

    spec = read_spec(models)
    path = models.with_suffix(".lock")
    lock = Lock.read(path) if path.exists() else None
    with Cache(cache_folder) as cache:
        for model in spec.select(names):
            source = spec.open(model)
            resolved = lock.require(model.name, model.source) if lock else cache.resolve(source)
            place = output / model.name
            shutil.rmtree(place, ignore_errors=True)
            shutil.copytree(cache.checkpoint(source, resolved), place)
            if model.family == "easyocr":
                _unzip(place)


def _unzip(folder: Path) -> None:
    from prebake_build.digest import md5_of
    from prebake_build.sources.archives import unpack

    for archive in sorted(folder.glob("*.zip")):
        unpack(archive, folder)
        archive.unlink()
    sums = {path.name: md5_of(path) for path in sorted(folder.glob("*.pth"))}
    (folder / SUMS).write_text(json.dumps(sums, indent=2) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """The two commands."""
    parser = argparse.ArgumentParser(
        prog="python -m prebake_build.naive", description=(__doc__ or "").partition("\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    fetch = commands.add_parser("prepare", help="put checkpoints where the service finds them")
    fetch.add_argument("names", nargs="*", metavar="NAME")
    fetch.add_argument("--models", type=Path, default=Path("models.toml"))
    fetch.add_argument("--output", type=Path, required=True)
    fetch.add_argument("--cache", type=Path)
    fetch.set_defaults(run=lambda options: prepare(options.models, options.names, options.output, options.cache))
    start = commands.add_parser("serve", help="load everything, then answer")
    start.add_argument("--checkpoints", type=Path, required=True)
    start.add_argument("--host", default="127.0.0.1")
    start.add_argument("--port", type=int, default=layout.DEFAULT_PORT)
    start.set_defaults(run=_serve)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        options.run(options)
    except PrebakeError as error:
        print(f"naive: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


def _serve(options: argparse.Namespace) -> None:
    from prebake.service import Application, serve

    models = NaiveModels(options.checkpoints)
    serve(Application(models), host=options.host, port=options.port, begin=lambda: None)


if __name__ == "__main__":
    sys.exit(main())
