"""Image files become upright RGB pictures, and no file takes more memory than its format may."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.runtime_fakes import python_says
from helpers.serving import picture
from image_analyzer.capacity import Capacity
from image_analyzer.pictures import (
    FORMATS,
    KEPT,
    MAX_JPEG_PIXELS,
    MAX_PIXELS,
    MEMORY,
    PEAK,
    Pictures,
    decode,
    memory_for,
)
from prebake.errors import ConfigError

SEEDS = {kind: picture(kind) for kind in FORMATS}
SEEDS = {kind: picture(kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read_as_rgb(kind: str) -> None:
    image = decode(SEEDS[kind]).image
    assert (image.mode, image.size) == ("RGB", (640, 480))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_each_kind_of_pixel_becomes_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (3, 2)).save(file, "TIFF" if mode == "CMYK" else "PNG")
    assert decode(file.getvalue()).image.mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"garbage", b"<html>", picture("PDF"), picture("EPS"), picture("PPM")],
                         ids=["empty", "garbage", "html", "pdf", "eps", "ppm"])  # fmt: skip
def test_what_is_no_image_file_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(data)
    assert str(caught.value) == (
        "the body is not an image file (expected one of BMP, GIF, JPEG, PNG, TIFF, WEBP)"
    )  # fmt: skip


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_a_truncated_image_is_refused(kind: str) -> None:
    with pytest.raises(ConfigError, match=r"^the image cannot be read: "):
        decode(SEEDS[kind][: len(SEEDS[kind]) // 2])


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded() -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 8000, 8000, 8, 2, 0, 0, 0)
    with pytest.raises(ConfigError) as caught:
        decode(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b""))
    assert str(caught.value) == (
        "the image has 8000 x 8000 pixels, allowed are 25,000,000 (50,000,000 in a JPEG file): send a smaller one"
    )


@given(kind=st.sampled_from(FORMATS), changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
       near=st.booleans())  # fmt: skip
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
def test_no_changed_byte_gives_anything_but_our_own_error(
    kind: str, changes: list[tuple[float, int]], near: bool
) -> None:
    content = bytearray(SEEDS[kind])
    for where, value in changes:
        content[int(where * (min(len(content), 200 if near else len(content)) - 1))] = value
    with suppress(ConfigError):
        decode(bytes(content))


# --- orientation -------------------------------------------------------------------------------------------------

RED, BLUE = (254, 0, 0), (0, 0, 254)
ORIENTATIONS = {
    1: (), 2: (Image.Transpose.FLIP_LEFT_RIGHT,), 3: (Image.Transpose.ROTATE_180,),
    4: (Image.Transpose.FLIP_TOP_BOTTOM,), 5: (Image.Transpose.TRANSPOSE,), 6: (Image.Transpose.ROTATE_90,),
    7: (Image.Transpose.TRANSVERSE,), 8: (Image.Transpose.ROTATE_270,),
}  # fmt: skip
"""How a camera turns what it sees before it writes the file with that orientation."""


def photo(orientation: int, kind: str = "JPEG", size: tuple[int, int] = (64, 48), **options: Any) -> bytes:
    """A file of a landscape with a red top left corner, lying as the orientation says."""
    seen = Image.new("RGB", size, BLUE)
    seen.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    for turn in ORIENTATIONS[orientation]:
        seen = seen.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    seen.save(file, kind, exif=exif, **options)
    return file.getvalue()


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_a_picture_is_upright_whatever_way_the_camera_was_held(kind: str, orientation: int) -> None:
    found = decode(photo(orientation, kind))
    assert (found.image.size, found.size, found.image.mode) == ((64, 48), (64, 48), "RGB")
    corners = [found.image.getpixel(at) for at in ((8, 8), (56, 8), (8, 40), (56, 40))]
    assert [corner[0] > 128 for corner in corners if isinstance(corner, tuple)] == [True, False, False, False]


def damaged(how: str) -> bytes:
    content = photo(6)
    place = content.index(b"Exif\0\0") + 6
    header, count, tag = content[place : place + 8], place + 8, place + 10
    assert header[:2] in (b"II", b"MM")
    order = "<" if header[:2] == b"II" else ">"
    changed = bytearray(content)
    if how == "no header":
        changed[place : place + 2] = b"XX"
    elif how == "more tags than there are":
        changed[count : count + 2] = struct.pack(order + "H", 60_000)
    elif how == "a directory outside":
        changed[place + 4 : place + 8] = struct.pack(order + "I", 2**32 - 1)
    elif how == "an orientation that is none":
        changed[tag + 8 : tag + 10] = struct.pack(order + "H", 77)
    elif how == "an orientation in words":
        changed[tag + 2 : tag + 4] = struct.pack(order + "H", 2)
    elif how == "cut off":
        changed[place + 10 : place + 26] = bytes(16)
    return bytes(changed)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize(
    "how", ["no header", "more tags than there are", "a directory outside", "an orientation that is none",
            "an orientation in words", "cut off"],
)  # fmt: skip
def test_a_picture_whose_exif_is_damaged_is_answered_about(how: str) -> None:
    assert decode(damaged(how)).image.size in ((48, 64), (64, 48))


def test_a_picture_with_another_damaged_tag_is_upright_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(exif: Image.Exif, offset: int = 8) -> bytes:
        raise struct.error("another tag")

    content = photo(6)
    monkeypatch.setattr(Image.Exif, "tobytes", fails)
    assert decode(content).image.size == (64, 48)


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@given(changes=st.lists(st.tuples(st.integers(0, 99), st.integers(0, 255)), max_size=6))
def test_no_changed_byte_of_exif_gives_anything_but_our_own_error(changes: list[tuple[int, int]]) -> None:
    content = bytearray(TURNED)
    for where, value in changes:
        content[20 + where] = value
    with suppress(ConfigError):
        decode(bytes(content))


TURNED = photo(6)

# --- memory ------------------------------------------------------------------------------------------------------


def test_a_large_jpeg_is_reduced_and_its_full_size_told() -> None:
    found = decode(photo(6, size=(8001, 5000)))
    assert found.size == (8001, 5000)
    assert found.image.size == (4001, 2500)
    assert found.image.width * found.image.height < MAX_PIXELS


def test_a_jpeg_that_is_too_large_even_so_is_refused() -> None:
    file = io.BytesIO()
    Image.new("L", (10_000, 5_001)).save(file, "JPEG")
    with pytest.raises(ConfigError, match=r"^the image has 10000 x 5001 pixels, allowed are "):
        decode(file.getvalue())


def test_the_largest_picture_of_each_format_can_be_decoded_at_all() -> None:
    assert max(PEAK.values()) * MAX_PIXELS <= MEMORY
    content = bytearray(photo(1, size=(64, 48)))
    frame = content.index(b"\xff\xc0")
    content[frame + 5 : frame + 9] = struct.pack(">HH", 5_000, MAX_JPEG_PIXELS // 5_000)
    assert memory_for(io.BytesIO(content)) <= MEMORY


PEAKS = r"""
import io, re
from pathlib import Path
from PIL import Image
from image_analyzer.pictures import decode, memory_for
def status(name):
    return 1024 * int(re.search(name + r":\s+(\d+)", Path("/proc/self/status").read_text())[1])
def written(mode, kind, **options):
    file = io.BytesIO()
    Image.new(mode, (4000, 3000)).save(file, kind, **options)
    return file
exif = Image.Exif()
exif[0x0112] = 6
files = [written("RGB", "BMP"), written("P", "GIF"), written("RGBA", "PNG", exif=exif), written("RGB", "WEBP"),
    written("RGB", "JPEG", exif=exif), written("CMYK", "JPEG", progressive=True, subsampling=0),
    written("RGB", "TIFF", compression="jpeg", strip_size=2**30)]
decode(written("RGB", "BMP"))
for file in files:
    before = status("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")
    picture = decode(file)
    peak, kept = status("VmHWM") - before, status("VmRSS") - before
    print(peak / memory_for(file), kept / (4 * 12_000_000))
    del picture
"""


def test_no_format_takes_more_memory_than_is_reserved_for_it() -> None:
    ratios = [[float(word) for word in line.split()] for line in python_says(PEAKS).splitlines()]
    assert len(ratios) == len(FORMATS) + 1
    assert max(peak for peak, _ in ratios) < 1.2
    assert max(kept for _, kept in ratios) < 1.5  # the C library keeps what is below 32 MiB


def test_text_in_a_png_file_is_not_unpacked_without_limit() -> None:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for number in range(4):
        info.add_text(f"t{number}", "a" * 500_000, zip=True)
    file = io.BytesIO()
    Image.new("L", (1, 1)).save(file, "PNG", pnginfo=info)
    with pytest.raises(ConfigError, match=r"^the image cannot be read: Too much memory used in text chunks"):
        decode(file.getvalue())


def test_a_picture_waits_while_those_before_it_take_the_memory() -> None:
    """A decoded picture holds less than what decoding it may take: others need not wait for its answer."""
    small = io.BytesIO(picture("PNG", (100, 100)))
    pictures = Pictures(memory=memory_for(small) + KEPT * 100 * 100)
    decoded = threading.Event()

    def third() -> None:
        with pictures.decoded(io.BytesIO(small.getvalue())):
            decoded.set()

    with ExitStack() as first_and_second:
        for _ in range(2):
            first_and_second.enter_context(pictures.decoded(small))
        waiting = threading.Thread(target=third)
        waiting.start()
        assert not decoded.wait(0.3)
    waiting.join(60)
    assert decoded.is_set()


def test_a_picture_that_cannot_be_decoded_leaves_its_memory_to_others() -> None:
    broken, whole = SEEDS["PNG"][:2000], SEEDS["PNG"]
    pictures = Pictures(memory=memory_for(io.BytesIO(whole)), decoders=1)
    for _ in range(3):
        with pytest.raises(ConfigError), pictures.decoded(io.BytesIO(broken)):
            raise AssertionError
        with pictures.decoded(io.BytesIO(whole)) as found:
            assert found.size == (640, 480)


def test_a_capacity_is_given_back_once() -> None:
    capacity = Capacity(10)
    with capacity.taken(8) as share:
        share.shrink(9)
        assert capacity.free == 2
        share.shrink(3)
        assert (capacity.free, capacity.try_take(7, spare=1), capacity.try_take(6, spare=1)) == (7, False, True)
    assert capacity.free == 4
    with pytest.raises(ValueError, match=r"^11 of 10 can never be taken$"), capacity.taken(11):
        pass
