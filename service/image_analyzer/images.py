"""Image files as the service reads them."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from prebake.errors import ConfigError

if TYPE_CHECKING:
    from PIL.Image import Image

MAX_PIXELS = 50_000_000
"""An image above this is refused before it is decoded."""
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")
"""What is read. Pillow knows forty more, some through Ghostscript, and a service that anybody may ask needs none."""


def decode(data: bytes) -> Image:
    """An image file's bytes as an RGB image. Raises ConfigError where they are none, or too large a one."""
    from PIL import Image, UnidentifiedImageError

    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise ConfigError(f"the image has {image.width} x {image.height} pixels, allowed are {MAX_PIXELS:,}")
        return image.convert("RGB")
    except UnidentifiedImageError:
        raise ConfigError(f"the body is no image file (expected one of {', '.join(FORMATS)})") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"the image cannot be read: {error}") from error


def example() -> Image:
    """A picture with a few words, for the first answer of a check: 640 x 480 pixels."""
    from PIL import Image, ImageDraw, ImageFont

    image = Image.new("RGB", (640, 480), "white")
    draw = ImageDraw.Draw(image)
    draw.rectangle((40, 260, 240, 440), fill="steelblue")
    draw.ellipse((320, 220, 560, 460), fill="orange")
    draw.text((60, 60), "PREBAKE 2026", fill="black", font=ImageFont.load_default(48))
    return image
