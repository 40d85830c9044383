"""The reference service's functions: captions, Korean and English text, Florence-2's tasks.

It takes `caption`, `ocr` and `florence` from a mapping of models, on first use. The mapping's values need `model` and
`processor`, or `reader`; the naive baseline has its own mapping.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Protocol

from prebake.errors import ConfigError, LoadError, UnknownModelError

if TYPE_CHECKING:
    from PIL.Image import Image

CAPTION, OCR, FLORENCE = "caption", "ocr", "florence"

TASKS = (
    "<CAPTION>", "<DETAILED_CAPTION>", "<MORE_DETAILED_CAPTION>", "<OD>", "<DENSE_REGION_CAPTION>",
    "<REGION_PROPOSAL>", "<OCR>", "<OCR_WITH_REGION>", "<CAPTION_TO_PHRASE_GROUNDING>",
    "<REFERRING_EXPRESSION_SEGMENTATION>", "<REGION_TO_SEGMENTATION>", "<OPEN_VOCABULARY_DETECTION>",
    "<REGION_TO_CATEGORY>", "<REGION_TO_DESCRIPTION>", "<REGION_TO_OCR>",
)  # fmt: skip
"""Florence-2's task tokens, as in `Florence2Processor`."""
TASKS_WITHOUT_TEXT = TASKS[:8]


class Loaded(Protocol):
    """The interface of a loaded model."""

    @property
    def model(self) -> Any: ...
    @property
    def processor(self) -> Any: ...
    @property
    def reader(self) -> Any: ...


class LoadedByName(Protocol):
    def __getitem__(self, name: str, /) -> Any: ...
    def __contains__(self, name: object, /) -> bool: ...


class Analyzer:
    """Analyses images. Thread-safe: one request at a time per model."""

    def __init__(self, models: LoadedByName) -> None:
        self._models = models
        # fast tokenizers and EasyOCR's reader are not thread-safe
        self._locks = {name: threading.Lock() for name in (CAPTION, OCR, FLORENCE)}

    def caption(self, image: Image, max_tokens: int = 20) -> str:
        """An English caption of the image with at most `max_tokens` tokens."""
        loaded, turn = self._use(CAPTION)
        with turn, _inference():
            inputs = loaded.processor(images=image, return_tensors="pt").to(loaded.model.device)
            tokens = loaded.model.generate(**inputs, max_new_tokens=max_tokens)
            return str(loaded.processor.decode(tokens[0], skip_special_tokens=True)).strip()

    def read(self, image: Image, size: tuple[int, int] | None = None) -> list[dict[str, Any]]:
        """Korean and English text in the image: `text`, `box` (four corners, pixels) and `confidence` (0 to 1).

        Boxes are in pixels of the image, or of the full picture of `size` if the image is a reduced version of it.
        """
        import numpy

        loaded, turn = self._use(OCR)
        width, height = size or image.size
        across, down = width / image.width, height / image.height
        with turn:  # also around the array, which is as large as the image
            pixels = numpy.ascontiguousarray(numpy.asarray(image)[:, :, ::-1])  # EasyOCR expects BGR
            return [
                {
                    "text": text,
                    "box": [[int(x * across), int(y * down)] for x, y in box],
                    "confidence": round(float(confidence), 4),
                }
                for box, text, confidence in loaded.reader.readtext(pixels)
            ]

    def florence(
        self, image: Image, task: str = "<CAPTION>", text: str = "", size: tuple[int, int] | None = None
    ) -> Any:
        """Run one of Florence-2's tasks; `text` is the phrase or region that some tasks need, `size` as for `read`.

        Raises ConfigError for an unknown task, an unexpected text or a missing text.
        """
        check_task(task, text)
        loaded, turn = self._use(FLORENCE)
        with turn, _inference():
            inputs = loaded.processor(text=task + text, images=image, return_tensors="pt").to(loaded.model.device)
            tokens = loaded.model.generate(**inputs, max_new_tokens=256)
            written = loaded.processor.batch_decode(tokens, skip_special_tokens=False)[0]
            parsed = loaded.processor.post_process_generation(written, task=task, image_size=size or image.size)
        return parsed[task]

    def analyze(self, image: Image, size: tuple[int, int] | None = None) -> dict[str, Any]:
        """Caption, text and objects, from the models that exist; `size` as for `read`."""
        parts: dict[str, tuple[str, Callable[[], Any]]] = {
            "caption": (CAPTION, lambda: self.caption(image)),
            "text": (OCR, lambda: self.read(image, size)),
            "objects": (FLORENCE, lambda: self.florence(image, "<OD>", size=size)),
        }
        return {name: answer() for name, (model, answer) in parts.items() if model in self._models}

    def _use(self, name: str) -> tuple[Any, threading.Lock]:
        try:
            return self._models[name], self._locks[name]
        except UnknownModelError:
            raise
        except ConfigError as error:  # the image's configuration is wrong, not the request
            raise LoadError(str(error)) from error


def check_task(task: str, text: str) -> None:
    """Raise ConfigError if Florence-2 does not have this task, or the text is unexpected or missing."""
    if task not in TASKS:
        raise ConfigError(f'"{task}" is not a task of Florence-2 (expected one of {", ".join(TASKS)})')
    if task in TASKS_WITHOUT_TEXT and text:
        raise ConfigError(f"{task} takes no text")
    if task not in TASKS_WITHOUT_TEXT and not text:
        raise ConfigError(f"{task} needs a text")


def _inference() -> AbstractContextManager[Any]:
    import torch

    return torch.inference_mode()
