"""The service without Prebake: the baseline of measurements.

It imports everything, loads every model sequentially in its constructor from checkpoints as upstream publishes them,
with three tries for Florence-2, and opens its port when all are loaded. The same code as in the baked service answers
requests, so a comparison shows only the start.

`prebake fetch` writes the checkpoints for it; `python -m image_analyzer.naive` runs it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from image_analyzer.analyzer import CAPTION, FLORENCE, OCR
from image_analyzer.command import DEFAULT_PORT
from image_analyzer.server import serve
from image_analyzer.service import Application
from prebake import State, Status, compat, timeline
from prebake.errors import ConfigError, PrebakeError, UnknownModelError

SUMS = "md5.json"
"""File with the md5 sums of EasyOCR's files. EasyOCR compares files with its own table, which lacks the dummies."""


class NaiveModels:
    """All models, loaded in the constructor, with the interface that `image_analyzer.service` needs."""

    ready = True

    def __init__(self, root: Path) -> None:
        with timeline.span("import"):
            compat.torchvision_operators()
            import easyocr
            import torch  # noqa: F401
            import transformers

            transformers.BlipForConditionalGeneration  # noqa: B018  # transformers imports a class on attribute access
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
            raise ConfigError(f"{root}: holds no checkpoint (run: prebake fetch --output {root})")

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


def main(argv: Sequence[str] | None = None) -> int:
    """Load everything, then serve until a signal; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m image_analyzer.naive", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--checkpoints", type=Path, required=True, help="folder that `prebake fetch` wrote")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=DEFAULT_PORT)
    options = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        serve(Application(NaiveModels(options.checkpoints)), host=options.host, port=options.port, begin=lambda: None)
    except PrebakeError as error:
        print(f"naive: error: {error}", file=sys.stderr)
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
