"""The picture that the service is asked about in a check or a measurement."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL.Image import Image


def example() -> Image:
    """A picture with a few words, for the first answer of a check: 640 x 480 pixels."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 260, 240, 440), fill="steelblue")
    draw.ellipse((320, 220, 560, 460), fill="orange")
    draw.text((60, 60), "PREBAKE 2026", fill="black", font=ImageFont.load_default(48))
    return image
