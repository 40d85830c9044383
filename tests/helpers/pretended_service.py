"""The service as a process whose reader waits for the test: `python -m helpers.pretended_service --port N`."""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from pathlib import Path
from typing import Any

from helpers.serving import Pretended, Process, Reader
from image_analyzer import uploads
from image_analyzer.server import serve
from image_analyzer.service import Application

TESTS = Path(__file__).parents[1]


class HeldReader(Reader):
    """Waits for the file `release` when it is asked about a picture 77 pixels wide, and computes when it is 78.

    Makes the file `begun` before.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder

    def readtext(self, pixels: Any) -> list[tuple[Any, str, float]]:
        if pixels.shape[1] == 77:
            (self._folder / "begun").touch()
            deadline = time.monotonic() + 120
            while not (self._folder / "release").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
        if pixels.shape[1] == 78:
            import torch

            matrix = torch.rand(1000, 1000)
            (self._folder / "begun").touch()
            while True:
                matrix @ matrix
        return super().readtext(pixels)


def started(folder: Path, *options: object) -> Process:
    """The service as a process."""
    path = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    return Process(folder, *options, module="helpers.pretended_service", PYTHONPATH=path)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--drain", type=float, default=60)
    parser.add_argument("--seconds", type=float, default=uploads.SECONDS)
    options = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    uploads.SECONDS = options.seconds
    application = Application(Pretended(ocr=HeldReader(options.folder)))
    serve(application, host="127.0.0.1", port=options.port, begin=lambda: None, drain=options.drain)
    return 0


if __name__ == "__main__":
    sys.exit(main())
