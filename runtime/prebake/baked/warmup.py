"""The warm-up of a model: the key `warmup` in `models.toml` and in the manifest. Standard library only.

It is either a `module:function` of the application, which is called with the loaded model, or inputs as data for the
module itself. Both documents are read here with the same checks, because a manifest may be untrusted: data may call the
module's `forward`, or `generate` with arguments that can neither reference code nor run for long.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from prebake.documents.messages import describe, quote
from prebake.documents.table import Table

METHODS = ("forward", "generate")
DTYPES = ("bool", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64")
"""Dtypes of zeros; the dtype of a list follows from its values."""
MAX_ELEMENTS = 100_000_000
"""Limit for all inputs together."""
MAX_DIMENSIONS = 8
MAX_STEPS = 1_000
"""Limit for the integers that determine how long `generate` runs."""

_GENERATE: Mapping[str, type[int]] = {
    "do_sample": bool, "max_new_tokens": int, "min_new_tokens": int, "num_beams": int, "use_cache": bool
}  # fmt: skip
"""Arguments that `generate` may get besides tensors."""
_CODE = ("custom_generate", "trust_remote_code")
"""Arguments that make `generate` run code from a folder or a hub; a tensor would count as true."""
_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)
_NAME = re.compile(r"[A-Za-z_]\w*", re.ASCII)
_FLOAT32 = 3.4028234663852886e38


@dataclass(frozen=True, kw_only=True, slots=True)
class Zeros:
    """A tensor of zeros."""

    shape: tuple[int, ...]
    dtype: str = "float32"
    """One of DTYPES."""

    def to_json(self) -> dict[str, Any]:
        return {"shape": list(self.shape), "dtype": self.dtype}


@dataclass(frozen=True, kw_only=True, slots=True)
class Numbers:
    """A tensor with its values."""

    values: tuple[Any, ...]
    """Nested tuples, one level per dimension, of equal length in each level; numbers, or booleans."""
    dtype: str
    """`bool`, `int64`, or `float32` if one of the numbers is a float."""

    def to_json(self) -> list[Any]:
        return [_lists(value) for value in self.values]


Value = Zeros | Numbers | bool | int | float | str


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """Keyword arguments for the module."""

    method: str = "forward"
    """One of METHODS; `forward` calls the module itself."""
    values: Mapping[str, Value]

    def to_json(self) -> dict[str, Any]:
        values = {
            name: value.to_json() if isinstance(value, Zeros | Numbers) else value
            for name, value in self.values.items()
        }
        return {"method": self.method, "inputs": values}


Warmup = str | Inputs
"""`module:function`, or inputs as data."""


def read_warmup(table: Table) -> Warmup | None:
    """The value of the table's key `warmup`; None if it is absent. Raises the table's error class."""
    if "warmup" not in set(table):
        table.maybe("warmup", str)  # a known key
        return None
    value = table.raw("warmup")
    if isinstance(value, str):
        if not _FUNCTION.fullmatch(value):
            raise table.fail("warmup", f'{quote(value)} is not of the form "package.module:function"')
        return value
    if not isinstance(value, Mapping):
        raise table.fail("warmup", f'expected "package.module:function" or a table of inputs, found {describe(value)}')
    inner = table.table("warmup")
    method = inner.one_of("method", METHODS, "forward")
    inputs = Inputs(method=method, values=_values(inner.table("inputs"), method))
    inner.finish()
    return inputs


def spell_warmup(warmup: Warmup) -> str | dict[str, Any]:
    """The warm-up as JSON, which `read_warmup` reads."""
    return warmup if isinstance(warmup, str) else warmup.to_json()


def _values(table: Table, method: str) -> dict[str, Value]:
    values: dict[str, Value] = {}
    elements = 0
    for name in table:
        if not _NAME.fullmatch(name):
            raise table.fail(name, f"{quote(name)} is not an argument name")
        value, count = _value(table, name)
        if method == "generate":
            _check_generate(table, name, value)
        elements += count
        if elements > MAX_ELEMENTS:
            raise table.fail(name, f"{elements:,} elements with the inputs before it, allowed are {MAX_ELEMENTS:,}")
        values[name] = value
    return values


def _value(table: Table, name: str) -> tuple[Value, int]:
    """One input, and the number of its elements."""
    value = table.raw(name)
    if isinstance(value, Mapping):
        zeros = _zeros(table.table(name))
        return zeros, math.prod(zeros.shape)
    if isinstance(value, list):
        return _numbers(table, name, value)
    if isinstance(value, bool | str):
        return value, 0
    if isinstance(value, int | float):
        _check_number(table, name, value)
        return value, 0
    raise table.fail(name, f"expected a list of numbers, a shape, a number, a string or true or false, found "
                           f"{describe(value)}")  # fmt: skip


def _zeros(table: Table) -> Zeros:
    shape = table.take("shape", list)
    dtype = table.one_of("dtype", DTYPES, "float32")
    table.finish()
    if len(shape) > MAX_DIMENSIONS:
        raise table.fail("shape", f"{len(shape):,} dimensions, allowed are {MAX_DIMENSIONS}")
    for i, size in enumerate(shape):
        if type(size) is not int or not 1 <= size <= MAX_ELEMENTS:
            raise table.fail(
                f"shape[{i}]", f"expected a whole number from 1 to {MAX_ELEMENTS:,}, found {describe(size)}"
            )
    return Zeros(shape=tuple(shape), dtype=dtype)


def _numbers(table: Table, name: str, value: list[Any]) -> tuple[Numbers, int]:
    """A nested list, read level by level: a manifest may nest deeper than Python's recursion limit."""
    items: list[Any] = [value]
    for _ in range(MAX_DIMENSIONS):
        if any(not isinstance(item, list) for item in items) or len({len(item) for item in items}) > 1:
            raise table.fail(name, "is not a tensor: its inner lists differ in length or depth")
        items = [inner for item in items for inner in item]
        if not any(isinstance(item, list) for item in items):
            break
    else:
        raise table.fail(name, f"more than {MAX_DIMENSIONS} dimensions")
    if not items:
        raise table.fail(name, "is empty, so its type is unknown: write { shape = […], dtype = … }")
    kinds: tuple[type, ...] = (bool,) if type(items[0]) is bool else (int, float)
    for item in items:
        if type(item) not in kinds:
            expected = "true and false" if kinds == (bool,) else "numbers"
            raise table.fail(name, f"expected a list of {expected}, found {describe(item)} in it")
        _check_number(table, name, item)
    floats = any(type(item) is float for item in items)
    if floats and (large := next((item for item in items if abs(item) > _FLOAT32), None)) is not None:
        raise table.fail(name, f"{large} is beyond float32")
    dtype = "bool" if kinds == (bool,) else "float32" if floats else "int64"
    return Numbers(values=_tuples(value), dtype=dtype), len(items)


def _check_number(table: Table, name: str, value: float) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise table.fail(name, f"{value} is not a number that a manifest can hold")
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise table.fail(name, f"{describe(value)} is beyond int64")


def _check_generate(table: Table, name: str, value: object) -> None:
    kind = _GENERATE.get(name)
    if kind is None and isinstance(value, Zeros | Numbers) and name not in _CODE:
        return
    if kind is None:
        raise table.fail(
            name,
            f"generate takes tensors from data, and {', '.join(_GENERATE)}: for anything else write a function, "
            'warmup = "package.module:function"',
        )
    number = table.take(name, kind)
    if kind is int and not 1 <= number <= MAX_STEPS:
        raise table.fail(name, f"{number} is not between 1 and {MAX_STEPS:,}")


def _tuples(value: Any) -> Any:
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _lists(value: Any) -> Any:
    return list(map(_lists, value)) if isinstance(value, tuple) else value
