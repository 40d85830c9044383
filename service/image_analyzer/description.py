"""What the reference service tells Prebake about itself (`prebake.services`)."""

from __future__ import annotations

import io
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from image_analyzer.analyzer import CAPTION, FLORENCE, OCR, Analyzer
from image_analyzer.example import example
from prebake import Request, timeline

if TYPE_CHECKING:
    from PIL.Image import Image

PATHS = {CAPTION: "/caption", OCR: "/ocr", FLORENCE: "/florence"}
"""Model → the path that asks it; the first one that a service has answers first."""


class ImageAnalyzer:
    """A caption of the example picture, or what the models that are there can tell of it."""

    modules: tuple[str, ...] = ("image_analyzer.server", "image_analyzer.uploads", "image_analyzer.service")

    def answer(self, models: Any) -> str | None:
        """Ask the first model that is there; its name."""
        analyzer = Analyzer(models)
        asked: dict[str, Callable[[Image], object]] = {
            CAPTION: analyzer.caption,
            OCR: analyzer.read,
            FLORENCE: analyzer.florence,
        }
        for name, ask in asked.items():
            if name in models:
                with timeline.span("first answer", name):
                    ask(example())
                return name
        return None

    def request(self, models: Collection[str]) -> Request | None:
        """The example picture as a PNG, sent to the first model that is there."""
        path = next((path for model, path in PATHS.items() if model in models), None)
        if path is None:
            return None
        picture = io.BytesIO()
        example().save(picture, "PNG")
        return Request(method="POST", path=path, body=picture.getvalue())
