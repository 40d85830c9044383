"""Documents: every value has one type, every error the path of what it is about."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prebake.documents.messages import describe, nearest, quote, reason
from prebake.documents.table import Table, canonical_json, check_format, read_json
from prebake.errors import ConfigError, DocumentError, NewerFormatError

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


def table(**data: Any) -> Table:
    return Table(data, "file.toml: models")


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (str, 1, "file.toml: models.key: expected a string, found a whole number (1)"),
        (int, "1", 'file.toml: models.key: expected a whole number, found the string "1"'),
        (int, True, "file.toml: models.key: expected a whole number, found true or false (True)"),
        (int, 1.5, "file.toml: models.key: expected a whole number, found a number (1.5)"),
        (float, False, "file.toml: models.key: expected a number, found true or false (False)"),
        (bool, 1, "file.toml: models.key: expected true or false, found a whole number (1)"),
        (list, {}, "file.toml: models.key: expected a list, found a table"),
        (dict, [], "file.toml: models.key: expected a table, found a list"),
        (str, None, "file.toml: models.key: expected a string, found nothing"),
    ],
)
def test_a_value_of_another_kind_is_refused(kind: type[Any], value: object, message: str) -> None:
    with pytest.raises(DocumentError) as error:
        table(key=value).take("key", kind)
    assert str(error.value) == message


def test_a_missing_value_says_what_was_expected() -> None:
    with pytest.raises(DocumentError) as error:
        table().take("key", int)
    assert str(error.value) == "file.toml: models.key: is missing (expected a whole number)"
    assert table().take("key", int, 7) == 7
    assert table(key=None).maybe("key", int) is None


def test_a_whole_number_is_a_number_but_one_beyond_floats_is_refused() -> None:
    assert table(key=3).take("key", float) == 3.0
    with pytest.raises(DocumentError, match=r"^file\.toml: models\.key: expected a number, found "):
        table(key=10**400).take("key", float)


def test_every_key_that_nobody_took_is_refused_with_the_nearest_known_one() -> None:
    data = table(revision="x", licnse="MIT")
    data.take("revision", str)
    data.maybe("licence", str)
    with pytest.raises(DocumentError) as error:
        data.finish()
    assert str(error.value) == 'file.toml: models.licnse: unknown key: did you mean "licence"?'


def test_a_closed_set_names_its_members() -> None:
    with pytest.raises(DocumentError) as error:
        table(dtype="float31").one_of("dtype", ("float32", "bfloat16"))
    assert str(error.value) == (
        'file.toml: models.dtype: "float31" is not one of float32, bfloat16: did you mean "float32"?'
    )


def test_nested_values_carry_their_whole_path() -> None:
    data = Table({"a": {"b": [{"c": 1}, {"c": "x"}]}, "names": ["x", 2]}, "m.json")
    with pytest.raises(
        DocumentError, match=r"^m\.json: a\.b\[1\]\.c: expected a whole number, found the string \"x\"$"
    ):
        data.table("a").items("b", lambda inner: inner.take("c", int))
    with pytest.raises(DocumentError, match=r"^m\.json: names\[1\]: expected a string, found a whole number \(2\)$"):
        data.strings("names")


def test_a_table_raises_the_class_it_was_given() -> None:
    with pytest.raises(ConfigError, match=r"^x\.toml: expected a table, found a list$"):
        Table([], "x.toml", ConfigError)
    with pytest.raises(ConfigError):
        Table({"a": {"b": 1}}, "x.toml", ConfigError).table("a").take("b", str)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (None, "there is no such file (expected a manifest)"),
        (b"\xff\xfe", "cannot read this manifest: 'utf-8' codec can't decode byte 0xff in position 0"),
        (b"{", "this manifest is not JSON: Expecting property name enclosed in double quotes"),
        (b"[" * 100_000, "this manifest is not JSON: "),
        (b"[]", "expected a table, found a list"),
        (b"{}", "format: is missing (expected a whole number)"),
        (b'{"format": 0}', "format: 0 is not a valid format of a manifest"),
        (b'{"format": 1, "format": 1}', 'this manifest is not JSON: duplicate key "format"'),
        (b'{"format": NaN}', "this manifest is not JSON: NaN is not a JSON number"),
        (b'{"format": 1, "x": "\\ud800"}', "this manifest is not JSON: "),
        (b'{"format": 1' + b"0" * 5000 + b"}", ""),
    ],
)
def test_what_is_no_document_is_refused_with_the_reason(tmp_path: Path, body: bytes | None, message: str) -> None:
    path = tmp_path / "manifest.json"
    if body is not None:
        path.write_bytes(body)
    with pytest.raises(DocumentError) as error:
        read_json(path, 1, "manifest")
    assert str(error.value).startswith(f"{path}: {message}")


def test_a_newer_format_is_told_apart(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text('{"format": 3, "whatever": 1}')
    with pytest.raises(NewerFormatError) as error:
        read_json(path, 2, "manifest")
    assert str(error.value) == (
        f"{path}: format: this manifest has format 3, but this Prebake reads up to 2: "
        "update prebake, or bake again with this version"
    )


def test_an_unreadable_document_says_why(tmp_path: Path) -> None:
    with pytest.raises(DocumentError) as error:
        read_json(tmp_path, 1, "manifest")
    assert str(error.value) == f"{tmp_path}: cannot read this manifest: Is a directory"


@given(st.binary(max_size=60))
def test_random_bytes_are_a_document_or_a_document_error(tmp_path_factory: pytest.TempPathFactory, body: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "random.json"
    path.write_bytes(body)
    with pytest.raises(DocumentError):
        read_json(path, 1, "manifest")


@given(st.dictionaries(st.text(), JSON))
def test_canonical_json_does_not_depend_on_the_order_of_keys(document: dict[str, Any]) -> None:
    text = canonical_json(document)
    assert json.loads(text) == document
    assert canonical_json(dict(reversed(document.items()))) == text
    assert text.endswith("}\n")


@given(JSON)
def test_whatever_was_found_can_be_described(value: object) -> None:
    assert len(describe(value)) < 700


def test_long_values_are_cut() -> None:
    assert quote("x" * 81) == '"' + "x" * 77 + '..."'
    assert quote('한"') == '"한\\""'


def test_nearest_is_silent_where_nothing_is_near() -> None:
    assert nearest("zzz", ["caption"]) == ""


def test_reasons_are_without_numbers_and_file_names() -> None:
    assert reason(FileNotFoundError(2, "No such file or directory", "/x")) == "No such file or directory"
    assert reason(ValueError("x")) == "x"
    assert reason(KeyboardInterrupt()) == "KeyboardInterrupt"


def test_a_number_that_python_refuses_to_spell_is_refused_in_a_short_message() -> None:
    """TOML holds one in hexadecimal, whatever its length."""
    beyond = "0x" + "f" * 75 + "..."
    with pytest.raises(DocumentError, match=rf"^file\.toml: models\.key: expected a string, found .* \({beyond}\)$"):
        table(key=16**5000 - 1).take("key", str)
    with pytest.raises(NewerFormatError, match=rf"^file\.toml: models\.format: this lock has format {beyond}, "):
        check_format(table(format=16**5000 - 1), 1, "lock")
    assert describe(10**60) == f"a whole number ({10**60})"


def test_half_of_a_surrogate_pair_is_named_in_a_message_that_can_be_written(tmp_path: Path) -> None:
    path = tmp_path / "manifest.json"
    path.write_text(r'{"\ud800": 1, "\ud800": 2}')
    with pytest.raises(DocumentError) as error:
        read_json(path, 1, "manifest")
    assert str(error.value) == rf'{path}: this manifest is not JSON: duplicate key "\ud800"'
