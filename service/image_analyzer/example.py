"""The picture that checks and measurements send to the service."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def example() -> Image:
    """A picture of 640 x 480 pixels with two shapes and a few words."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 260, 240, 440), fill="steelblue")
    draw.ellipse((320, 220, 560, 460), fill="orange")
    draw.text((60, 60), "PREBAKE 2026", fill="black", font=ImageFont.load_default(48))
    return image
