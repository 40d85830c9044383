"""Images and tasks are checked before a model sees them."""

from __future__ import annotations

import inspect
import io
import re
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from helpers.serving import Pretended, Reader, picture
from image_analyzer.analyzer import (
    TASKS,
    TASKS_WITHOUT_TEXT,
    Analyzer,
    check_task,
)
from image_analyzer.images import FORMATS, MAX_PIXELS, decode, example
from prebake.errors import ConfigError, LoadError, UnknownModelError
from prebake.families.compat import torchvision_operators

torchvision_operators()
SEEDS = {kind: picture(kind) for kind in FORMATS}


@pytest.mark.parametrize("kind", FORMATS)
def test_each_format_is_read_as_rgb(kind: str) -> None:
    image = decode(SEEDS[kind])
    assert (image.mode, image.size) == ("RGB", (640, 480))


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "LA", "I;16", "CMYK"])
def test_each_kind_of_pixel_becomes_rgb(mode: str) -> None:
    file = io.BytesIO()
    Image.new(mode, (3, 2)).save(file, "TIFF" if mode == "CMYK" else "PNG")
    assert decode(file.getvalue()).mode == "RGB"


@pytest.mark.parametrize("data", [b"", b"garbage", b"<html>", picture("PDF"), picture("EPS"), picture("PPM")],
                         ids=["empty", "garbage", "html", "pdf", "eps", "ppm"])  # fmt: skip
def test_what_is_no_image_file_is_refused(data: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(data)
    assert str(caught.value) == (
        "the body is no image file (expected one of BMP, GIF, JPEG, PNG, TIFF, WEBP)"
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
    assert str(caught.value) == f"the image has 8000 x 8000 pixels, allowed are {MAX_PIXELS:,}"


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


@pytest.mark.parametrize("task", TASKS)
def test_a_task_takes_text_or_none(task: str) -> None:
    right, wrong = ("", "a car") if task in TASKS_WITHOUT_TEXT else ("a car", "")
    check_task(task, right)
    with pytest.raises(ConfigError, match=re.escape(task)):
        check_task(task, wrong)


def test_a_task_that_is_none_is_refused() -> None:
    with pytest.raises(ConfigError, match=r'^"<DANCE>" is no task of Florence-2 \(expected one of <CAPTION>, '):
        check_task("<DANCE>", "")


def test_tasks_are_those_of_the_installed_processor() -> None:
    from transformers import Florence2Processor

    text = inspect.getsource(Florence2Processor)
    assert [task for task in TASKS if f'"{task}"' not in text] == []


def test_readings_are_plain_values() -> None:
    assert Analyzer(Pretended(ocr=Reader())).read(example()) == [
        {"text": "글", "box": [[0, 0], [640, 0], [9, 9], [0, 9]], "confidence": 0.5}
    ]


def test_everything_is_asked_of_the_models_that_are_there() -> None:
    assert Analyzer(Pretended(ocr=Reader())).analyze(example()).keys() == {"text"}


def test_a_model_that_is_not_there_is_named() -> None:
    with pytest.raises(UnknownModelError, match=r'^/models: no model "caption"$'):
        Analyzer(Pretended()).caption(example())


def test_a_model_that_is_wrongly_configured_is_no_fault_of_the_question() -> None:
    with pytest.raises(LoadError, match=r"^transformers has no Such$"):
        Analyzer(Pretended(caption=ConfigError("transformers has no Such"))).caption(example())
