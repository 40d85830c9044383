"""Image files become upright RGB pictures, within limits on memory.

A decoded picture takes 4 bytes a pixel in Pillow, and 2 to 4 times that while it is decoded, converted and turned. So
`Pictures` reads the header first, reserves what the format may take, and gives back what is not needed afterwards.
"""

from __future__ import annotations

import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, BinaryIO

from image_analyzer.capacity import Capacity
from prebake.errors import ConfigError

if TYPE_CHECKING:
    from PIL import Image

MAX_PIXELS = 25_000_000
"""A larger picture is refused before it is decoded. Phones take at most 24.5 million (5712 x 4284) unless told to."""
MAX_JPEG_PIXELS = 2 * MAX_PIXELS
"""JPEG can be decoded at half the width and height for a quarter of the memory: this is done above `MAX_PIXELS`."""
MEMORY = 400_000_000
"""Bytes of all pictures that are being decoded or answered: the largest of the most wasteful format. More wait."""
DECODERS = 2
"""Pictures decoded at once: each takes a core."""
KEPT = 4
"""Bytes a pixel of an RGB picture in Pillow."""
PEAK = {"BMP": 8, "GIF": 8, "JPEG": 12, "PNG": 8, "TIFF": 12, "WEBP": 16}
"""Bytes a pixel while a file is decoded, at most. JPEG in several scans keeps 8 bytes of coefficients (CMYK), TIFF in
one strip keeps the strip, and libwebp keeps two frames besides the one that it returns."""
PEAK_REDUCED = 8
"""The same for JPEG at half the width and height."""
MAX_TEXT = 1_000_000
"""Bytes of text in a PNG file, decompressed. Pillow keeps up to 64 MiB of it."""
BLOCK = 64 * 2**20
"""Bytes of a piece of a picture. The C library gives pieces above 32 MiB back to the system as soon as they are freed;
Pillow's own 16 MiB would mostly stay with the process."""
FORMATS = tuple(PEAK)
"""What is read. Pillow knows forty more, some through Ghostscript, and a service that anybody may ask needs none."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: RGB, and turned as its EXIF orientation says."""

    image: Image.Image
    size: tuple[int, int]
    """Width and height of the full picture; `image` is smaller where it was reduced while it was decoded."""


class Pictures:
    """Decodes pictures so that their memory is bounded in sum. Safe under threads."""

    def __init__(self, memory: int = MEMORY, decoders: int = DECODERS) -> None:
        self._memory = Capacity(memory)
        self._decoders = threading.BoundedSemaphore(decoders)

    @contextmanager
    def decoded(self, file: BinaryIO) -> Iterator[Picture]:
        """The picture in the file, kept during the block. Waits while too many others are kept.

        Raises ConfigError as `decode` does.
        """
        with self._decoders:
            peak = memory_for(file)
        with self._memory.taken(peak) as share:
            with self._decoders:
                picture = decode(file)
            share.shrink(KEPT * picture.image.width * picture.image.height)
            yield picture


def memory_for(file: BinaryIO) -> int:
    """Bytes that decoding may take at most, from the file's header. Raises ConfigError as `decode` does."""
    with _readable(file) as image:
        pixels = image.width * image.height
        return pixels * (PEAK_REDUCED if pixels > MAX_PIXELS else PEAK[str(image.format)])


def decode(file: BinaryIO | bytes) -> Picture:
    """An image file as an upright RGB picture. Raises ConfigError where it is not an image, or too large."""
    with _readable(io.BytesIO(file) if isinstance(file, bytes) else file) as opened:
        size = opened.size
        if size[0] * size[1] > MAX_PIXELS:  # only JPEG gets here
            opened.draft(None, (size[0] // 2, size[1] // 2))
            if opened.size == size:
                raise _too_large(size)
        opened.load()
        lying = opened.size
        _turn(opened)
        if opened.size != lying:
            size = size[1], size[0]
        # libwebp's frames stay with the image that the file was opened as
        return Picture(opened if opened.mode == "RGB" and opened.format != "WEBP" else opened.convert("RGB"), size)


@contextmanager
def _readable(file: BinaryIO) -> Iterator[Image.Image]:
    """The file, opened, of an allowed format and size; errors in the block are of the file's pixels."""
    from PIL import Image, PngImagePlugin, UnidentifiedImageError

    PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
    Image.core.set_block_size(BLOCK)  # type: ignore[attr-defined]  # Pillow documents it, and does not export it
    try:
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > (MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS):
            raise _too_large(image.size)
        yield image
    except UnidentifiedImageError:
        raise ConfigError(f"the body is no image file (expected one of {', '.join(FORMATS)})") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"the image cannot be read: {error}") from error


def _too_large(size: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"the image has {size[0]} x {size[1]} pixels, allowed are {MAX_PIXELS:,} ({MAX_JPEG_PIXELS:,} in a JPEG file): "
        "send a smaller one"
    )


def _turn(image: Image.Image) -> None:
    """Turn a loaded picture as its EXIF orientation says, in place; unreadable EXIF is ignored."""
    from PIL import ImageOps

    try:
        image.getexif()
    except Exception:  # cameras and editors write all kinds of damage, and Pillow raises whatever it runs into
        return
    image.info.clear()  # EXIF is read; exif_transpose would write it anew, which fails where other tags are damaged
    ImageOps.exif_transpose(image, in_place=True)
