"""`models.toml` into types."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helpers import ROOT
from prebake.baked.warmup import Inputs, Numbers, Zeros
from prebake.errors import ConfigError, UnknownModelError
from prebake.families.family import NAMES
from prebake_build.declared.spec import ModelSpec, read_spec
from prebake_build.sources import IN_THE_BOX
from prebake_build.sources.path import PathSource

DTYPES = "float32, bfloat16, float16, source"
BLIP = "transformers:BlipForConditionalGeneration"
NO_FAMILY = f"not a known family (expected one of {', '.join(NAMES)})"
NO_SCHEME = f"has no known scheme (expected one of {', '.join(name + ':' for name in IN_THE_BOX)})"
OTHERS = " (others come with a package that has an entry point of the group prebake.sources)"


def write(folder: Path, text: str) -> Path:
    path = folder / "models.toml"
    path.write_text(text, encoding="utf-8")
    return path


def issues(folder: Path, text: str) -> list[str]:
    """The lines of the error, without the folder."""
    with pytest.raises(ConfigError) as error:
        read_spec(write(folder, text))
    return str(error.value).replace(f"{folder}/", "").splitlines()


def one(folder: Path, lines: str, source: str = "path:weights") -> list[str]:
    return issues(folder, f'[models.caption]\nsource = "{source}"\n{lines}\n')


def test_the_repositorys_own_file_is_read() -> None:
    assert read_spec(ROOT / "models.toml").models == (
        ModelSpec(
            name="caption",
            source="hf:Salesforce/blip-image-captioning-base@82a37760796d32b1411fe092ab5d4e227313294b",
            family="transformers",
            class_="BlipForConditionalGeneration",
            dtype="float32",
        ),
        ModelSpec(name="ocr", source="easyocr:ko+en", family="easyocr", options={"quantize": True}),
        ModelSpec(
            name="florence",
            source="hf:florence-community/Florence-2-base",
            dtype="float32",
            retries=3,
        ),
    )


def test_every_key_has_its_place(tmp_path: Path) -> None:
    text = """
        [models."my.net"]
        source = "path:weights"
        class = "torch:package.module:factory"
        dtype = "bfloat16"
        retries = 10
        timeout = 30
        required = false
        [models."my.net".arguments]
        hidden = 4
        names = ["a", "b"]
        nested = { ratio = 0.5 }
    """
    assert read_spec(write(tmp_path, text)).models == (
        ModelSpec(
            name="my.net",
            source="path:weights",
            family="torch",
            class_="package.module:factory",
            dtype="bfloat16",
            retries=10,
            timeout=30.0,
            required=False,
            options={"arguments": {"hidden": 4, "names": ["a", "b"], "nested": {"ratio": 0.5}}},
        ),
    )


def test_a_warm_up_is_a_function_or_inputs(tmp_path: Path) -> None:
    text = """
        [models.caption]
        source = "path:x"
        warmup = "app.warm:caption"
        [models.encoder]
        source = "path:x"
        [models.encoder.warmup]
        method = "generate"
        [models.encoder.warmup.inputs]
        input_ids = [[101, 2023, 102]]
        pixel_values = { shape = [1, 3, 224, 224], dtype = "float32" }
        max_new_tokens = 1
        [models.none]
        source = "path:x"
    """
    caption, encoder, none = read_spec(write(tmp_path, text)).models
    assert (caption.warmup, none.warmup) == ("app.warm:caption", None)
    assert encoder.warmup == Inputs(
        method="generate",
        values={
            "input_ids": Numbers(values=((101, 2023, 102),), dtype="int64"),
            "pixel_values": Zeros(shape=(1, 3, 224, 224), dtype="float32"),
            "max_new_tokens": 1,
        },
    )


def test_the_family_is_left_open_unless_the_source_says_it(tmp_path: Path) -> None:
    text = '[models.a]\nsource = "path:x"\n[models.b]\nsource = "easyocr:en"\nquantize = false\n'
    a, b = read_spec(write(tmp_path, text)).models
    assert (a.family, a.class_, b.family, b.class_, b.options) == (None, None, "easyocr", None, {"quantize": False})


def test_relative_paths_start_where_models_toml_is(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, '[models.a]\nsource = "path:x"\n'))
    assert spec.open(spec.models[0]) == PathSource(uri="path:x", folder=tmp_path / "x")


# --- select ------------------------------------------------------------------------------------------------------


def test_select_keeps_the_files_order_and_takes_all_for_none(tmp_path: Path) -> None:
    spec = read_spec(write(tmp_path, "".join(f'[models.{name}]\nsource = "path:x"\n' for name in "cab")))
    assert [model.name for model in spec.select([])] == ["c", "a", "b"]
    assert [model.name for model in spec.select(["b", "c", "b"])] == ["c", "b"]


def test_an_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UnknownModelError) as error:
        read_spec(ROOT / "models.toml").select(["ocr", "captoin"])
    assert str(error.value) == (
        f'{ROOT}/models.toml: there is no model "captoin" (it has caption, ocr, florence): did you mean "caption"?'
    )
    assert error.value.exit_code == 2


# --- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('dtype = "float31"', f'dtype: "float31" is not one of {DTYPES}: did you mean "float32"?'),
        ("dtype = 32", "dtype: expected a string, found a whole number (32)"),
        ("retires = 3", 'retires: unknown key: did you mean "retries"?'),
        ('class = "torch:a:b"\nfiel = "a.pth"', 'fiel: unknown key: did you mean "file"?'),
        (
            "colour = 3",
            "colour: unknown key (known: source, class, dtype, retries, timeout, required, warmup, shard_size)",
        ),
        ("shard_size = 2", "shard_size: expected a string, found a whole number (2)"),
        ('shard_size = "0"', 'shard_size: 0 bytes hold no weights (expected a size, such as "2 GB")'),
        (
            'shard_size = "much"',
            'shard_size: "much" is not a size (expected for example "1.5 GB" or "512 MiB")',
        ),
        ("retries = -1", "retries: -1 is not between 0 and 10"),
        ("retries = 11", "retries: 11 is not between 0 and 10"),
        ("retries = true", "retries: expected a whole number, found true or false (True)"),
        ("timeout = 0", "timeout: 0 is not a number of seconds above 0"),
        ("timeout = inf", "timeout: inf is not a number of seconds above 0"),
        ('required = "yes"', 'required: expected true or false, found the string "yes"'),
        ('class = "Blip"', f'class: "Blip" is {NO_FAMILY}: did you mean "transformers:Blip"?'),
        ('class = "transformer:Blip"', f'class: "transformer" is {NO_FAMILY}: did you mean "transformers"?'),
        ('class = "transformers:"', f'class: "transformers:" is not of the form "{BLIP}"'),
        ('class = "transformers:a.B"', f'class: "transformers:a.B" is not of the form "{BLIP}"'),
        ('class = "torch:module"', 'class: "torch:module" is not of the form "torch:package.module:factory"'),
        ('class = "torch:os; x:f"', 'class: "torch:os; x:f" is not of the form "torch:package.module:factory"'),
        ('class = "easyocr:Reader"', 'class: the family easyocr cannot read the source "path:weights"'),
        ('class = "transformers:Blip"\nquantize = true',
         "quantize: is only for the family easyocr (this model's family is transformers)"),
        ("arguments = {}", 'arguments: is only for the family timm or torch (set `class = "FAMILY:…"` if it is)'),
        ('class = "torch:a:b"\narguments = { day = [2026-01-02] }',
         "arguments.day: the manifest (JSON) cannot contain a date"),
        ("warmup = 1", 'warmup: expected "package.module:function" or a table of inputs, found a whole number (1)'),
        ("warmup = { inputs = {}, methd = 1 }", 'warmup.methd: unknown key: did you mean "method"?'),
        ("warmup = { inputs = { x = { shape = [1], dtyp = 1 } } }",
         'warmup.inputs.x.dtyp: unknown key: did you mean "dtype"?'),
        ("warmup = { inputs = { x = { shape = [20000, 20000] } } }",
         "warmup.inputs.x: 400,000,000 elements with the inputs before it, allowed are 100,000,000"),
        ("warmup = { inputs = { x = 2026-01-02 } }",
         "warmup.inputs.x: expected a list of numbers, a shape, a number, a string or true or false, found a date"),
        ("warmup = { inputs = { x = [inf] } }", "warmup.inputs.x: inf is not a number that a manifest can hold"),
        ('class = "torch:a:b"\narguments = { x = nan }', "arguments.x: the manifest (JSON) cannot contain nan"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_with_its_path(tmp_path: Path, lines: str, message: str) -> None:
    assert one(tmp_path, lines) == [f"models.toml: models.caption.{message}"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("huggingface:a/b", f'"huggingface:a/b" {NO_SCHEME}{OTHERS}'),
        ("hff:a/b", f'"hff:a/b" {NO_SCHEME}: did you mean "hf"?'),
        ("a/b", f'"a/b" {NO_SCHEME}{OTHERS}'),
        ("hf:a/b/", '"hf:a/b/" is not of the form "hf:ORG/NAME", "hf:ORG/NAME@REVISION" or "hf:ORG/NAME@NAME@COMMIT"'),
        ("easyocr:ko,en", '"easyocr:ko,en" is not of the form "easyocr:ko+en", each language once'),
        ("url:ftp://a/b", '"ftp://a/b" is not an http:// or https:// URL with a host'),
        ("path:", '"path:" is not of the form "path:FOLDER"'),
    ],
)  # fmt: skip
def test_a_source_that_nothing_can_read_is_refused(tmp_path: Path, source: str, message: str) -> None:
    assert one(tmp_path, "", source) == [f"models.toml: models.caption.source: {message}"]


def test_easyocr_has_its_own_family_and_type(tmp_path: Path) -> None:
    assert one(tmp_path, 'class = "transformers:Blip"', "easyocr:en") == [
        'models.toml: models.caption.class: the family transformers cannot read the source "easyocr:en"'
    ]
    assert one(tmp_path, 'dtype = "bfloat16"', "easyocr:en") == [
        'models.toml: models.caption.dtype: "bfloat16" does not fit the family easyocr (it is float32)'
    ]


def test_easyocr_is_warmed_by_a_function(tmp_path: Path) -> None:
    assert one(tmp_path, "warmup = { inputs = {} }", "easyocr:en") == [
        "models.toml: models.caption.warmup: the family easyocr has two networks and no forward for inputs: write a "
        'function, warmup = "package.module:function"'
    ]
    text = '[models.ocr]\nsource = "easyocr:en"\nwarmup = "app:warm"\n'
    assert read_spec(write(tmp_path, text)).models[0].warmup == "app:warm"


def test_all_issues_are_raised_at_once(tmp_path: Path) -> None:
    text = """
        model = 1
        [models.Caption]
        dtype = "float31"
        retries = -1
        [models.ocr]
        source = "easyocr:xx"
        [models]
        other = "x"
    """
    found = issues(tmp_path, text)
    assert found[:5] == [
        'models.toml: model: unknown key: did you mean "models"?',
        "models.toml: models: \"Caption\" is not a valid model name: use lower-case letters, digits, '.', '_' and '-', "
        "at most 64, with a letter or digit at both ends",
        "models.toml: models.Caption.source: is missing (expected a string)",
        'models.toml: models.Caption.dtype: "float31" is not one of float32, bfloat16, float16, source: '
        'did you mean "float32"?',
        "models.toml: models.Caption.retries: -1 is not between 0 and 10",
    ]
    assert found[5].startswith('models.toml: models.ocr.source: EasyOCR knows no language "xx" (expected some of abq, ')
    assert found[6:] == ['models.toml: models.other: expected a table, found the string "x"']


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "models.toml: models: is missing (expected a table)"),
        ("[models]", "models.toml: models: is empty (expected a table [models.NAME] for each model)"),
        ("models = 1", "models.toml: models: expected a table, found a whole number (1)"),
        ("[models", "models.toml: is not TOML: "),
        pytest.param("x = " + "[" * 5000, "models.toml: is not TOML: ", id="deep values"),
        pytest.param("[models.net.arguments" + ".a" * 600 + "]", "models.toml: is not TOML: ", id="tables 600 deep"),
        pytest.param("[models.net.arguments" + ".a" * 5000 + "]", "models.toml: is not TOML: ", id="deep tables"),
        pytest.param("x = " + "9" * 5000, "models.toml: is not TOML: ", id="many digits"),
        pytest.param(
            "[models.net]\narguments = {x = 0x" + "f" * 5000 + "}",
            "models.toml: is not TOML: ",
            id="many hexadecimal digits",
        ),
    ],
)
def test_a_file_without_models_is_refused(tmp_path: Path, text: str, message: str) -> None:
    assert issues(tmp_path, text)[0].startswith(message)


def test_an_absent_file_and_one_that_is_no_text(tmp_path: Path) -> None:
    with pytest.raises(
        ConfigError,
        match=r"there is no such file: `prebake scan -- COMMAND` writes one, or name another with --models$",
    ):
        read_spec(tmp_path / "models.toml")
    (tmp_path / "models.toml").write_bytes(b"\xff")
    with pytest.raises(ConfigError, match=r"is not UTF-8: invalid start byte at byte 0$"):
        read_spec(tmp_path / "models.toml")


@given(st.text(max_size=60))
def test_any_text_is_read_or_refused_with_a_message(text: str) -> None:
    """Never another exception: `models.toml` is written by hand."""
    from tempfile import TemporaryDirectory

    with TemporaryDirectory() as folder:
        try:
            read_spec(write(Path(folder), text))
        except ConfigError as error:
            assert str(error).startswith(f"{folder}/models.toml: ")
