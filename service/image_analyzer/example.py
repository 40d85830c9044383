"""The picture that checks and measurements send to the service."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = Path(__file__).with_name("example.png")
"""640 x 480 pixels with two shapes and a few words. A file, so that who only sends it needs no Pillow."""


def example() -> Image:
    """The picture, decoded."""
    from PIL import Image

    with Image.open(FILE) as file:
        image: Image.Image = file.convert("RGB")
        return image
