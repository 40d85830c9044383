"""The header of a safetensors file: parsed and covering the file exactly, or refused. Never anything else."""

from __future__ import annotations

import copy
import itertools
import json
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from helpers.runtime_fakes import entry, safetensors_bytes
from prebake.baked.header import ITEM_SIZES, MAX_HEADER, Entry, read_header
from prebake.errors import TensorFileError

VALID = {"a": entry("F32", [2, 3], 0, 24), "b": entry("I64", [], 24, 32), "c": entry("BF16", [0, 5], 32, 32)}


def refusal(path: Path, body: bytes) -> str:
    """What the refusal says after the file's name."""
    path.write_bytes(body)
    with pytest.raises(TensorFileError) as error:
        read_header(path)
    text = str(error.value)
    assert text.startswith(f"{path}: ")
    return text.removeprefix(f"{path}: ")


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    return tmp_path / "model.safetensors"


def test_entries_and_sizes_are_those_of_the_file(weights: Path) -> None:
    body = safetensors_bytes({"__metadata__": {"format": "pt"}, **VALID}, bytes(32))
    weights.write_bytes(body)
    header = read_header(weights)
    assert header.entries["a"] == Entry(dtype="F32", shape=(2, 3), begin=0, end=24)
    assert header.entries["b"].shape == ()
    assert list(header.entries) == ["a", "b", "c"]
    assert header.data_start + header.size == len(body)


def test_a_file_without_tensors_is_valid(weights: Path) -> None:
    weights.write_bytes(safetensors_bytes({}))
    assert read_header(weights).entries == {}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "0 bytes are too few for a safetensors file"),
        (b"1234567", "7 bytes are too few for a safetensors file"),
        (
            b"\xff" * 8,
            "its first 8 bytes give a header of 18,446,744,073,709,551,615 bytes, but the file has 8: "
            "this is not a safetensors file, or it is truncated",
        ),
        (safetensors_bytes([]), "its header is not a JSON object"),
        (safetensors_bytes(b"[" * 100_000), "its header is not JSON: "),
        (safetensors_bytes(b"\xff"), "its header is not JSON: 'utf-8' codec can't decode byte 0xff"),
        (safetensors_bytes(b'{"a":1,"a":1}'), "its header is not JSON: it has a duplicate key"),
        (
            safetensors_bytes({"\ud800": entry("U8", [1], 0, 1)}, bytes(1)),
            r"its header is not JSON: 'utf-8' codec can't encode character '\ud800'",
        ),
        (safetensors_bytes({"a": 1}), 'tensor "a": expected exactly dtype, shape and data_offsets'),
        (
            safetensors_bytes({"a": {**entry("F32", [1], 0, 4), "more": 1}}, bytes(4)),
            'tensor "a": expected exactly dtype, shape and data_offsets',
        ),
        (safetensors_bytes({"a": entry("F31", [1], 0, 4)}, bytes(4)), 'tensor "a": unknown dtype "F31"'),
        (
            safetensors_bytes({"a": {"dtype": [], "shape": [], "data_offsets": [0, 1]}}),
            'tensor "a": unknown dtype a list',
        ),
        (
            safetensors_bytes({"a": entry("F32", [-1], 0, 4)}, bytes(4)),
            'tensor "a": shape and data_offsets must be lists of non-negative integers',
        ),
        (
            safetensors_bytes({"a": entry("F32", [True], 0, 4)}, bytes(4)),
            'tensor "a": shape and data_offsets must be lists of non-negative integers',
        ),
        (
            safetensors_bytes({"a": entry("F32", [1], 4, 0)}, bytes(4)),
            'tensor "a": -4 bytes do not hold F32 of shape [1]',
        ),
        (
            safetensors_bytes({"a": entry("F32", [2], 0, 4)}, bytes(4)),
            'tensor "a": 4 bytes do not hold F32 of shape [2]',
        ),
        (
            safetensors_bytes({"a": entry("U8", [0, 2**62, 2**62], 0, 0)}),
            'tensor "a": its shape is too large for any memory: "[0, 4611686018427387904, 4611686018427387904]"',
        ),
        (
            safetensors_bytes({"a": entry("U8", [1], 1, 2)}, bytes(2)),
            'tensor "a" begins at 1, expected 0: gap or overlap',
        ),
        (
            safetensors_bytes({"a": entry("U8", [2], 0, 2), "b": entry("U8", [2], 1, 3)}, bytes(3)),
            'tensor "b" begins at 1, expected 2: gap or overlap',
        ),
    ],
)
def test_a_broken_header_is_refused_with_the_reason(weights: Path, body: bytes, message: str) -> None:
    assert refusal(weights, body).startswith(message)


@pytest.mark.parametrize("change", [-1, 1, -32, 4096])
def test_a_file_of_another_size_than_its_header_says_is_refused(weights: Path, change: int) -> None:
    whole = safetensors_bytes(VALID, bytes(32))
    body = whole[:change] if change < 0 else whole + bytes(change)
    assert refusal(weights, body) == (
        f"its header describes {len(whole)} bytes, but the file has {len(body):,}: "
        "it was truncated or changed; bake or pull this model again"
    )


def test_an_absent_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TensorFileError, match=r": cannot read these weights: No such file or directory$"):
        read_header(tmp_path / "absent")
    with pytest.raises(TensorFileError, match=r": cannot read these weights: Is a directory$"):
        read_header(tmp_path)


def test_a_shape_of_a_million_numbers_is_refused_without_multiplying_them(weights: Path) -> None:
    """Their product would have 62 million bits."""
    message = refusal(weights, safetensors_bytes({"a": entry("U8", [2**62] * 1_000_000, 0, 0)}))
    assert len(message) < 300


def test_an_announced_header_allocates_nothing_beyond_the_file(weights: Path) -> None:
    tracemalloc.start()
    try:
        refusal(weights, MAX_HEADER.to_bytes(8, "little") + bytes(100))
        assert tracemalloc.get_traced_memory()[1] < 1_000_000
    finally:
        tracemalloc.stop()


FUZZ = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])


def covers_exactly_or_is_refused(path: Path, body: bytes) -> None:
    path.write_bytes(body)
    try:
        header = read_header(path)
    except TensorFileError:
        return
    assert header.data_start + header.size == len(body)
    spans = sorted((item.begin, item.end) for item in header.entries.values())
    assert sum(end - begin for begin, end in spans) == header.size
    assert all(end <= begin for (_, end), (begin, _) in itertools.pairwise(spans))


@FUZZ
@given(st.binary(max_size=200))
def test_random_bytes_cover_exactly_or_are_refused(weights: Path, body: bytes) -> None:
    covers_exactly_or_is_refused(weights, body)


@FUZZ
@given(st.binary(max_size=60), st.binary(max_size=20))
def test_random_headers_cover_exactly_or_are_refused(weights: Path, text: bytes, data: bytes) -> None:
    covers_exactly_or_is_refused(weights, safetensors_bytes(text, data))


@FUZZ
@given(st.data())
def test_one_changed_byte_covers_exactly_or_is_refused(weights: Path, data: st.DataObject) -> None:
    body = bytearray(safetensors_bytes(VALID, bytes(32)))
    body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    covers_exactly_or_is_refused(weights, bytes(body))


ODD = (
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=5)
    | st.sampled_from([*ITEM_SIZES]) | st.lists(st.integers(-2, 2**64), max_size=4)
    | st.dictionaries(st.text(max_size=5), st.integers(), max_size=2)
)  # fmt: skip


@FUZZ
@given(st.data())
def test_one_changed_value_covers_exactly_or_is_refused(weights: Path, data: st.DataObject) -> None:
    header: dict[str, Any] = copy.deepcopy(VALID)
    tensor = header[data.draw(st.sampled_from("abc"))]
    key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
    if key in tensor and isinstance(tensor[key], list) and tensor[key] and data.draw(st.booleans()):
        tensor[key][data.draw(st.integers(0, len(tensor[key]) - 1))] = data.draw(ODD)
    else:
        tensor[key] = data.draw(ODD)
    covers_exactly_or_is_refused(weights, safetensors_bytes(json.dumps(header).encode(), bytes(32)))
