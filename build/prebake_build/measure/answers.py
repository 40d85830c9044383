"""Compares the answers of two services: byte for byte, or as JSON with a tolerance for its numbers."""

from __future__ import annotations

import json
import math
from typing import Any

from prebake.watching.questions import Answer


def same(one: Answer, other: Answer, tolerance: float | None = None) -> bool:
    """Whether both are equal byte for byte or, with a tolerance, equal as JSON.

    Numbers are then the same up to this relative difference, or this difference from zero.
    """
    if one.body == other.body:
        return True
    if tolerance is None:
        return False
    try:
        return _close(json.loads(one.body), json.loads(other.body), tolerance)
    except ValueError:
        return False


def _close(one: Any, other: Any, tolerance: float) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_close(one[key], other[key], tolerance) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(_close(*pair, tolerance) for pair in zip(one, other, strict=True))
    if _is_number(one) and _is_number(other):
        return math.isclose(one, other, rel_tol=tolerance, abs_tol=tolerance)
    return type(one) is type(other) and bool(one == other)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
