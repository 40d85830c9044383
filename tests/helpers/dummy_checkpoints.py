"""Dummies in a folder, and pictures to ask them about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

from prebake.families.compat import torchvision_operators
from prebake_build.dummies import Dummy, write

torchvision_operators()


def make(folder: Path, kind: str, **options: Any) -> Path:
    folder.mkdir(parents=True)
    write(Dummy(kind=kind, **options), folder)
    return folder


def picture(*lines: str, background: str = "white") -> Image.Image:
    image = Image.new("RGB", (420, 180), background)
    draw = ImageDraw.Draw(image)
    font = ImageFont.load_default(size=32)
    for index, line in enumerate(lines):
        draw.text((30, 20 + 70 * index), line, font=font, fill="black")
    return image
