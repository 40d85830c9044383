"""A CRAFT detector of random weights that still finds text: one hand-built path through its channel 0.

The path measures the density of edges, which is high in text, but low in plain areas and at the single black edge of
EasyOCR's padding. Every other channel is random and has weight 0 towards the path:

1. full size: sum of the absolute differences to the right and lower neighbours, without faint ones;
2. half size (the maximum of four): saturated at 1, so that contrast and stroke width do not matter;
3. quarter size (the maximum of four): from here on, the share of cells with an edge;
4. six 3x3 means through the U-net back to half size: a window of about 40 pixels;
5. text score = SLOPE * share + OFFSET, link score 0.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from prebake_build.dummies.weights import Array, Edit

SLOPE, OFFSET = 3.0, -0.8
"""EasyOCR grows a box where the score is above 0.4 and keeps it where one is above 0.7: shares of 0.4 and 0.5."""

_FAINT = 0.15
"""Brightness differences (0 to 1) up to this are noise or JPEG ringing."""
_GAIN = 8.0
"""Edges stronger than 1 / _GAIN above _FAINT count as one whole edge."""
_RGB_DEVIATION = (0.229, 0.224, 0.225)
"""EasyOCR divides the colours by these; the path undoes that, so differences are brightness differences."""


class _Row(NamedTuple):
    """One output channel: taps of input channels by (row, column) of the kernel, everything else 0."""

    taps: Mapping[tuple[int, int, int], float]
    bias: float = 0.0


def _differences() -> list[_Row]:
    rows = []
    for row, column in ((1, 2), (2, 1)):
        for sign in (1.0, -1.0):
            taps = {}
            for channel, deviation in enumerate(_RGB_DEVIATION):
                taps[channel, row, column] = sign * deviation / 3
                taps[channel, 1, 1] = -sign * deviation / 3
            rows.append(_Row(taps))
    return rows


def _point(weight: float, channel: int = 0, at: int = 1, bias: float = 0.0) -> list[_Row]:
    return [_Row({(channel, at, at): weight}, bias)]


_MEAN = [_Row({(0, row, column): 1 / 9 for row in range(3) for column in range(3)})]

# Convolution → its first output channels. `at=0` is the only place of a 1x1 kernel.
_PATH: Mapping[str, list[_Row]] = {
    "basenet.slice1.0": _differences(),
    "basenet.slice1.3": [_Row({(channel, 1, 1): 1.0 for channel in range(4)}, -_FAINT)],
    "basenet.slice1.7": _point(-_GAIN, bias=1.0),  # 1 - gain * edge, not below 0
    "basenet.slice1.10": _point(-1.0, bias=1.0),  # and back: the edge, not above 1
    "basenet.slice2.14": _point(1.0),
    "basenet.slice2.17": _MEAN,
    "upconv3.conv.0": _point(1.0, channel=128, at=0),  # after the 128 channels that come from below
    "upconv3.conv.3": _MEAN,
    "upconv4.conv.0": _point(1.0, at=0),
    "upconv4.conv.3": _MEAN,
    "conv_cls.0": _MEAN,
    "conv_cls.2": _MEAN,
    "conv_cls.4": _MEAN,
    "conv_cls.6": _point(1.0, at=0),
    "conv_cls.8": [*_point(SLOPE, at=0, bias=OFFSET), _Row({})],
}
# Batch normalisation leaves the path's channels unchanged, except for the division by sqrt(1 + 1e-5).
_IDENTITY = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}


def edit_for(name: str) -> Edit | None:
    """The path's change to CRAFT's tensor `name`, or None if the path does not use it."""
    module, _, part = name.rpartition(".")
    if module in _PATH:
        return _convolution(_PATH[module], part)
    before, _, index = module.rpartition(".")
    width = len(_PATH.get(f"{before}.{int(index) - 1}", ())) if index.isdigit() else 0
    if not width or before == "conv_cls" or part not in _IDENTITY:
        return None

    def pass_through(values: Array) -> None:
        values[:width] = _IDENTITY[part]

    return pass_through


def _convolution(rows: list[_Row], part: str) -> Edit:
    def edit(values: Array) -> None:
        for channel, row in enumerate(rows):
            if part == "bias":
                values[channel] = row.bias
            else:
                values[channel] = 0.0
                for place, weight in row.taps.items():
                    values[channel][place] = np.float32(weight)

    return edit
