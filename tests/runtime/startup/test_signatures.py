"""Types of numba as text, and back."""

from __future__ import annotations

import pytest

from prebake.startup.signatures import decode, encode

types = pytest.importorskip("numba").types

WRITTEN = {
    "float32, bool, none": (types.float32, types.boolean, types.none),
    "Array(float32, 2, 'F', True, aligned=True)": (types.Array(types.float32, 2, "F", readonly=True),),
    "Array(complex64, 1, 'A', False, aligned=False)": (types.Array(types.complex64, 1, "A", aligned=False),),
    "UniTuple(int64, 3), Tuple((int64, float32))": (
        types.UniTuple(types.int64, 3),
        types.Tuple((types.int64, types.float32)),
    ),
    "omitted(default=-1), omitted(default='edge'), omitted(default=None)": tuple(
        map(types.Omitted, (-1, "edge", None))
    ),
    "": (),
}


@pytest.mark.parametrize("text", WRITTEN)
def test_types_are_written_and_read(text: str) -> None:
    assert encode(WRITTEN[text]) == text
    assert decode(text) == WRITTEN[text]


@pytest.mark.parametrize(
    "type_", [types.ListType(types.int64), types.Optional(types.int64), types.StringLiteral("a")], ids=str
)
def test_other_types_have_no_text(type_: object) -> None:
    assert encode([type_]) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x y", "'x y' is not a list of types"),
        ("int64)(int64", "'int64)(int64' is not a list of types"),
        ("a=int64", "'a=int64' is not a list of types"),
        ("*int64", "'*int64' is not a type that can be written down"),
        ("__import__('os')", "\"__import__('os')\" is not a type that can be written down"),
        ("Array", "'Array' is not a type that can be written down"),
        ("Array(print('x'), 1, 'C')", "\"print('x')\" is not a type that can be written down"),
        ("UniTuple(int64, x.y)", "'x.y' is neither a type nor a value"),
        ("Array(float32, 1, 'Q')", "\"Array(float32, 1, 'Q')\" is not a type: Invalid layout 'Q'"),
    ],
)
def test_text_that_is_no_type_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match="is n") as error:
        decode(text)
    assert str(error.value) == message
