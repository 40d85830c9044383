"""Compares the answers of two services: byte for byte, or as JSON with a tolerance for its numbers.

What a job has written to files counts as an answer.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from prebake.errors import PrebakeError
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


def written(path: Path, since: float, label: str) -> tuple[Answer, ...]:
    """What a service has written to a file, or below a folder, since this time: the names, and each content.

    Raises PrebakeError if it has written nothing there.
    """
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    # a file system may keep times in whole seconds
    fresh = [file for file in files if file.is_file() and file.stat().st_mtime >= math.floor(since)]
    if not fresh:
        raise PrebakeError(f"{label}: --result {path}: the service has written nothing there")
    names = "\n".join(str(file.relative_to(path.parent)) for file in fresh)
    contents = (names.encode(), *(file.read_bytes() for file in fresh))
    return tuple(Answer(status=200, type="", body=content) for content in contents)


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
