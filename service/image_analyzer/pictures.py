"""Decodes image files to upright RGB pictures, within limits on memory.

A decoded picture takes 4 bytes per pixel in Pillow, and 2 to 4 times that while it is decoded, converted and rotated.
So `Pictures` reads the header first, reserves the format's maximum, and releases the rest afterwards.
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
"""A larger picture is refused before it is decoded. Phones take at most 24.5 million (5712 x 4284) by default."""
MAX_JPEG_PIXELS = 2 * MAX_PIXELS
"""Limit for JPEG. Above `MAX_PIXELS`, JPEG is decoded at half the width and height, with a quarter of the memory."""
MEMORY = 400_000_000
"""Bytes for all pictures in use: enough for the largest picture in the format with the highest peak. Others wait."""
DECODERS = 2
"""Pictures decoded at once: each uses a core."""
KEPT = 4
"""Bytes per pixel of an RGB picture in Pillow."""
PEAK = {"BMP": 8, "GIF": 8, "JPEG": 12, "PNG": 8, "TIFF": 12, "WEBP": 16}
"""Maximum bytes per pixel while a file is decoded. Progressive JPEG keeps 8 bytes of coefficients (CMYK), TIFF with one
strip keeps the strip, and libwebp keeps two frames besides the one that it returns."""
PEAK_REDUCED = 8
"""The same for JPEG at half the width and height, per pixel of the full picture."""
MAX_TEXT = 1_000_000
"""Maximum bytes of decompressed text in a PNG file. Pillow's own limit is 64 MiB."""
BLOCK = 64 * 2**20
"""Bytes of Pillow's memory blocks. The C library returns blocks above 32 MiB to the system as soon as they are freed;
blocks of Pillow's default size, 16 MiB, would mostly stay with the process."""
FORMATS = tuple(PEAK)
"""Accepted formats. Pillow has forty more, some of which run Ghostscript; a public service does not need them."""


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: RGB, with its EXIF orientation applied."""

    image: Image.Image
    size: tuple[int, int]
    """Width and height of the full picture; `image` is smaller if it was decoded at a reduced size."""


class Pictures:
    """Decodes pictures within a limit on their total memory. Thread-safe."""

    def __init__(self, memory: int = MEMORY, decoders: int = DECODERS) -> None:
        self._memory = Capacity(memory)
        self._decoders = threading.BoundedSemaphore(decoders)

    @contextmanager
    def decoded(self, file: BinaryIO) -> Iterator[Picture]:
        """The picture in the file, kept during the block. Waits until there is enough memory for it.

        Raises ConfigError like `decode`.
        """
        with self._decoders:
            peak = memory_for(file)
        with self._memory.taken(peak) as share:
            with self._decoders:
                picture = decode(file)
            share.shrink(KEPT * picture.image.width * picture.image.height)
            yield picture


def memory_for(file: BinaryIO) -> int:
    """Maximum bytes for decoding, from the file's header. Raises ConfigError like `decode`."""
    with _readable(file) as image:
        pixels = image.width * image.height
        return pixels * (PEAK_REDUCED if pixels > MAX_PIXELS else PEAK[str(image.format)])


def decode(file: BinaryIO | bytes) -> Picture:
    """Decode an image file to an upright RGB picture. Raises ConfigError if it is not an image or is too large."""
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
        # convert WebP even if it is RGB: the opened image would keep libwebp's frames
        return Picture(opened if opened.mode == "RGB" and opened.format != "WEBP" else opened.convert("RGB"), size)


@contextmanager
def _readable(file: BinaryIO) -> Iterator[Image.Image]:
    """The opened file, with format and size checked; errors in the block count as errors of the file."""
    from PIL import Image, PngImagePlugin, UnidentifiedImageError

    PngImagePlugin.MAX_TEXT_MEMORY = MAX_TEXT
    Image.core.set_block_size(BLOCK)  # type: ignore[attr-defined]  # documented by Pillow, but not exported
    try:
        file.seek(0)
        image = Image.open(file, formats=FORMATS)
        if image.width * image.height > (MAX_JPEG_PIXELS if image.format == "JPEG" else MAX_PIXELS):
            raise _too_large(image.size)
        yield image
    except UnidentifiedImageError:
        raise ConfigError(f"the body is not an image file (expected one of {', '.join(FORMATS)})") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise ConfigError(f"the image cannot be read: {error}") from error


def _too_large(size: tuple[int, int]) -> ConfigError:
    return ConfigError(
        f"the image has {size[0]} x {size[1]} pixels, allowed are {MAX_PIXELS:,} ({MAX_JPEG_PIXELS:,} in a JPEG file): "
        "send a smaller one"
    )


def _turn(image: Image.Image) -> None:
    """Apply the EXIF orientation to a loaded picture, in place; unreadable EXIF is ignored."""
    from PIL import ImageOps

    try:
        image.getexif()
    except Exception:  # EXIF from cameras and editors is often damaged, and Pillow raises any exception
        return
    image.info.clear()  # EXIF is already read; exif_transpose would rewrite it, which fails if other tags are damaged
    ImageOps.exif_transpose(image, in_place=True)
