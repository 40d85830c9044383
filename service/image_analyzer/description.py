"""Describes the reference service for Prebake's checks and measurements (`prebake.services`)."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any

from image_analyzer.analyzer import CAPTION, FLORENCE, OCR, Analyzer
from image_analyzer.example import FILE, example
from prebake import Request, timeline

if TYPE_CHECKING:
    from PIL.Image import Image

PATHS = {CAPTION: "/caption", OCR: "/ocr", FLORENCE: "/florence"}
"""Model → the path that uses it; the first answer comes from the first of these models that exists."""


class ImageAnalyzer:
    """Answers with a caption of the example picture, or with the result of another model if there is no `caption`."""

    modules: tuple[str, ...] = ("image_analyzer.server", "image_analyzer.uploads", "image_analyzer.service")

    def answer(self, models: Any) -> str | None:
        """Use the first model that exists and return its name."""
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
        """A request with the example picture, for the first model that exists."""
        path = next((path for model, path in PATHS.items() if model in models), None)
        if path is None:
            return None
        return Request(method="POST", path=path, body=FILE.read_bytes(), content_type="image/png")
