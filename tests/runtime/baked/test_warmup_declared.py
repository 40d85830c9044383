"""What a model is warmed up with is read from both documents with the same checks, and written as it was read."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import ROOT
from helpers.runtime_fakes import manifest_of
from prebake.baked.manifest import Loading, Manifest
from prebake.baked.warmup import DTYPES, Inputs, Numbers, Warmup, Zeros, read_warmup, spell_warmup
from prebake.documents.table import Table
from prebake.errors import ConfigError, DocumentError

SCHEMA = json.loads((ROOT / "docs" / "manifest.schema.json").read_text(encoding="utf-8"))
NAMES = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
INT64 = st.integers(-(2**63), 2**63 - 1)
ELEMENTS = INT64 | st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def tensors(draw: st.DrawFn) -> Any:
    """Nested lists, as JSON has them."""
    elements: st.SearchStrategy[Any] = draw(st.sampled_from([st.booleans(), INT64, ELEMENTS]))
    lists: st.SearchStrategy[list[Any]] = st.lists(elements, min_size=1, max_size=3)
    for _ in range(draw(st.integers(0, 2))):
        row = draw(lists)
        lists = st.just([row, row])
    return draw(lists)


INPUTS = st.dictionaries(
    NAMES,
    tensors()
    | st.fixed_dictionaries({"shape": st.lists(st.integers(1, 9), max_size=3), "dtype": st.sampled_from(DTYPES)})
    | st.booleans() | ELEMENTS | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    max_size=3,
)  # fmt: skip
FUNCTIONS = st.from_regex(r"[a-z_]{1,5}(\.[a-z_]{1,5}){0,2}:[a-z_]{1,5}", fullmatch=True)
WARMUPS = FUNCTIONS | st.fixed_dictionaries({"method": st.just("forward"), "inputs": INPUTS})


def read(declared: object) -> Warmup | None:
    return read_warmup(Table({"warmup": declared}, "models.toml: models.m", ConfigError))


def refusal(declared: object) -> str:
    with pytest.raises(ConfigError) as error:
        read(declared)
    return str(error.value)


def test_every_kind_of_input_has_its_type() -> None:
    inputs = {
        "ids": [[101, 2023, 102]], "scores": [1, 0.5], "mask": [[True], [False]],
        "picture": {"shape": [1, 3, 224, 224]}, "none": {"shape": [], "dtype": "int64"},
        "steps": 1, "ratio": 2.5, "task": "caption", "flag": True,
    }  # fmt: skip
    assert read({"inputs": inputs}) == Inputs(
        method="forward",
        values={
            "ids": Numbers(values=((101, 2023, 102),), dtype="int64"),
            "scores": Numbers(values=(1, 0.5), dtype="float32"),
            "mask": Numbers(values=((True,), (False,)), dtype="bool"),
            "picture": Zeros(shape=(1, 3, 224, 224), dtype="float32"),
            "none": Zeros(shape=(), dtype="int64"),
            "steps": 1,
            "ratio": 2.5,
            "task": "caption",
            "flag": True,
        },
    )
    assert read("app.warm:caption") == "app.warm:caption"


def test_generate_takes_tensors_and_what_says_how_long_it_runs() -> None:
    values = {"do_sample": False, "max_new_tokens": 1, "min_new_tokens": 1, "num_beams": 1_000, "use_cache": True}
    inputs = read({"method": "generate", "inputs": {"input_ids": [[1]], **values}})
    assert inputs == Inputs(method="generate", values={"input_ids": Numbers(values=((1,),), dtype="int64"), **values})


@given(WARMUPS)
def test_what_a_manifest_carries_is_read_as_the_same_and_fits_the_schema(declared: Any) -> None:
    manifest = manifest_of(loading=Loading(warmup=read(declared)))
    document = json.loads(manifest.text)
    jsonschema.validate(document, SCHEMA)
    table = Table(document, "manifest.json")
    table.take("format", int)
    again = Manifest.from_table(table)
    assert (again, again.text, spell_warmup(read(declared) or "")) == (manifest, manifest.text, declared)


def test_a_model_without_a_warm_up_has_the_manifest_that_it_had() -> None:
    assert json.loads(manifest_of().text)["loading"] == {"required": True, "retries": 0, "timeout": None}


def test_a_wrong_warm_up_of_a_manifest_is_named_with_its_path() -> None:
    document = json.loads(manifest_of().text)
    document["loading"]["warmup"] = {"inputs": {"x": ["a"]}}
    table = Table(document, "manifest.json")
    table.take("format", int)
    with pytest.raises(DocumentError) as error:
        Manifest.from_table(table)
    assert str(error.value) == (
        'manifest.json: loading.warmup.inputs.x: expected a list of numbers, found the string "a" in it'
    )


DEEP: Any = 1
for _ in range(3000):
    DEEP = [DEEP]

WRONG: dict[str, tuple[object, str]] = {
    "number": (1, 'warmup: expected "package.module:function" or a table of inputs, found a whole number (1)'),
    "list": ([], 'warmup: expected "package.module:function" or a table of inputs, found a list'),
    "null": (None, 'warmup: expected "package.module:function" or a table of inputs, found nothing'),
    "module": ("app.warm", 'warmup: "app.warm" is not of the form "package.module:function"'),
    "code": ("os; x:f", 'warmup: "os; x:f" is not of the form "package.module:function"'),
    "nothing": ({}, "warmup.inputs: is missing (expected a table)"),
    "unknown": ({"input": {}, "inputs": {}}, 'warmup.input: unknown key: did you mean "inputs"?'),
    "method": (
        {"method": "genrate", "inputs": {}},
        'warmup.method: "genrate" is not one of forward, generate: did you mean "generate"?',
    ),
    "other method": (
        {"method": "__call__", "inputs": {}}, 'warmup.method: "__call__" is not one of forward, generate'
    ),
    "inputs": ({"inputs": [1]}, "warmup.inputs: expected a table, found a list"),
}  # fmt: skip

ONLY_TENSORS = (
    "generate takes tensors from data, and do_sample, max_new_tokens, min_new_tokens, num_beams, use_cache: for "
    'anything else write a function, warmup = "package.module:function"'
)  # fmt: skip

WRONG_INPUT: dict[str, tuple[object, str]] = {
    "empty": ([], "is empty, so its type is unknown: write { shape = […], dtype = … }"),
    "empty rows": ([[], []], "is empty, so its type is unknown: write { shape = […], dtype = … }"),
    "ragged": ([[1, 2], [3]], "is not a tensor: its inner lists differ in length or depth"),
    "mixed depth": ([[1], 2], "is not a tensor: its inner lists differ in length or depth"),
    "deep": (DEEP, "more than 8 dimensions"),
    "strings": (["a"], 'expected a list of numbers, found the string "a" in it'),
    "tables": ([{"shape": [1]}], "expected a list of numbers, found a table in it"),
    "truth among numbers": ([1, True], "expected a list of numbers, found true or false (True) in it"),
    "numbers among truth": ([True, 1], "expected a list of true and false, found a whole number (1) in it"),
    "infinity": ([float("inf")], "inf is not a number that a manifest can hold"),
    "not a number": (float("nan"), "nan is not a number that a manifest can hold"),
    "large": ([1e300], "1e+300 is beyond float32"),
    "long": ([2**63], "a whole number (9223372036854775808) is beyond int64"),
    "very long": (2**400, f"a whole number ({f'{2**400:#x}'[:77]}...) is beyond int64"),
    "nothing": (
        None, "expected a list of numbers, a shape, a number, a string or true or false, found nothing"
    ),
}  # fmt: skip

WRONG_SHAPE: dict[str, tuple[object, str]] = {
    "none": ({"dtype": "float32"}, "shape: is missing (expected a list)"),
    "key": ({"shape": [1], "type": "float32"}, 'type: unknown key: did you mean "dtype"?'),
    "dtype": (
        {"shape": [1], "dtype": "float31"},
        f'dtype: "float31" is not one of {", ".join(DTYPES)}: did you mean "float32"?',
    ),
    "zero": ({"shape": [1, 0]}, "shape[1]: expected a whole number from 1 to 100,000,000, found a whole number (0)"),
    "truth": (
        {"shape": [True]}, "shape[0]: expected a whole number from 1 to 100,000,000, found true or false (True)"
    ),
    "large": (
        {"shape": [10**30]},
        f"shape[0]: expected a whole number from 1 to 100,000,000, found a whole number ({10**30})",
    ),
    "dimensions": ({"shape": [1] * 9}, "shape: 9 dimensions, allowed are 8"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_is_no_warm_up_is_refused(case: str) -> None:
    declared, message = WRONG[case]
    assert refusal(declared) == f"models.toml: models.m.{message}"


@pytest.mark.parametrize("case", WRONG_INPUT)
def test_what_is_no_input_is_refused(case: str) -> None:
    value, message = WRONG_INPUT[case]
    assert refusal({"inputs": {"x": value}}) == f"models.toml: models.m.warmup.inputs.x: {message}"


@pytest.mark.parametrize("case", WRONG_SHAPE)
def test_what_is_no_shape_is_refused(case: str) -> None:
    value, message = WRONG_SHAPE[case]
    assert refusal({"inputs": {"x": value}}) == f"models.toml: models.m.warmup.inputs.x.{message}"


def test_all_tensors_together_are_bounded() -> None:
    shape = {"shape": [10_000, 9_000]}
    assert refusal({"inputs": {"a": shape, "b": shape}}) == (
        "models.toml: models.m.warmup.inputs.b: 180,000,000 elements with the inputs before it, allowed are 100,000,000"
    )
    assert refusal({"inputs": {"a": {"shape": [100_000_000] * 8}}}).endswith(
        f"inputs.a: {10**64:,} elements with the inputs before it, allowed are 100,000,000"
    )


@pytest.mark.parametrize("name", ["a b", "1a", "", "é", "a.b"])
def test_an_input_has_the_name_of_an_argument(name: str) -> None:
    assert refusal({"inputs": {name: 1}}) == (
        f'models.toml: models.m.warmup.inputs.{name}: "{name}" is not an argument name'
    )


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("custom_generate", "org/repository", ONLY_TENSORS),
        ("trust_remote_code", True, ONLY_TENSORS),
        ("trust_remote_code", [1], ONLY_TENSORS),
        ("custom_generate", {"shape": [1]}, ONLY_TENSORS),
        ("penalty_alpha", 0.6, ONLY_TENSORS),
        ("cache_implementation", "static", ONLY_TENSORS),
        ("max_new_tokens", 1_001, "1001 is not between 1 and 1,000"),
        ("num_beams", 0, "0 is not between 1 and 1,000"),
        ("max_new_tokens", [1], "expected a whole number, found a list"),
        ("do_sample", 1, "expected true or false, found a whole number (1)"),
    ],
)
def test_generate_takes_nothing_that_names_code_or_runs_for_long(name: str, value: object, message: str) -> None:
    assert refusal({"method": "generate", "inputs": {name: value}}) == (
        f"models.toml: models.m.warmup.inputs.{name}: {message}"
    )


@pytest.mark.parametrize(
    "declared",
    [
        None, 1, "app.warm", {}, {"method": "x", "inputs": {}}, {"inputs": {"a b": 1}}, {"inputs": {"x": []}},
        {"inputs": {"x": ["a"]}}, {"inputs": {"x": {"shape": [0]}}}, {"inputs": {"x": {"shape": [1], "more": 1}}},
        {"inputs": {"x": {"shape": [1], "dtype": "complex64"}}}, {"inputs": {"x": None}}, {"inputs": {}, "more": 1},
    ],
)  # fmt: skip
def test_the_schema_refuses_it_too(declared: object) -> None:
    document = json.loads(manifest_of().text)
    document["loading"]["warmup"] = declared
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(document, SCHEMA)
