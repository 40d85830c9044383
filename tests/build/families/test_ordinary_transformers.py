"""Checkpoints of transformers load as `from_pretrained` loads them, or are refused with the reason; none runs code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import FORMS, Evil, recipe, refused, save, tiny
from prebake.errors import ConfigError, SourceError
from prebake_build.baking.ordinary import load_checkpoint
from prebake_build.baking.prove import difference_of


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in safetensors. Copy before you change it."""
    return save(tiny("BertForMaskedLM"), tmp_path_factory.mktemp("bert") / "checkpoint", "safetensors")


@pytest.mark.parametrize("class_", ["BertForMaskedLM", "GPT2LMHeadModel", "T5ForConditionalGeneration"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_gives_the_weights_that_were_saved(tmp_path: Path, class_: str, form: str) -> None:
    model = tiny(class_)
    found = load_checkpoint(recipe(), save(model, tmp_path / "c", form))
    assert (found.class_, found.options, found.requires) == (
        class_, {"dtype": "float32", "processor": None}, ("torch", "transformers")
    )  # fmt: skip
    expected = model.state_dict()
    loaded = found.module.state_dict()
    assert loaded.keys() == expected.keys()
    assert not [name for name in expected if difference_of(expected[name], loaded[name])]


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_dtype_is_that_of_every_weight_and_of_the_configuration(bert: Path, dtype: str) -> None:
    found = load_checkpoint(recipe(dtype=dtype), bert)
    assert {str(tensor.dtype) for tensor in found.module.state_dict().values()} == {f"torch.{dtype}"}
    assert found.options["dtype"] == dtype
    config = json.loads(found.texts["config.json"])
    assert (config["torch_dtype"], config.get("dtype")) == (dtype, None)


def test_the_dtype_of_the_source_is_the_one_it_declares(tmp_path: Path) -> None:
    checkpoint = save(tiny("BertForMaskedLM").to(torch.bfloat16), tmp_path / "c", "safetensors")
    found = load_checkpoint(recipe(), checkpoint)
    assert (found.options["dtype"], found.texts) == ("bfloat16", {})


def test_an_auto_class_becomes_the_class_that_it_finds(bert: Path) -> None:
    assert load_checkpoint(recipe(class_="AutoModelForMaskedLM"), bert).class_ == "BertForMaskedLM"


def test_what_belongs_to_the_model_is_kept_and_other_weights_are_not(tmp_path: Path) -> None:
    checkpoint = save(tiny("BertForMaskedLM"), tmp_path / "c", "safetensors shards")
    for name in ("tf_model.h5", "flax_model.msgpack", "model.onnx", "model.gguf", "old.zip", "rust_model.ot",
                 "pytorch_model.bin", "training_args.bin", "optimizer.pt", "README.md", ".gitattributes"):  # fmt: skip
        (checkpoint / name).write_text("x")
    (checkpoint / "templates").mkdir()
    (checkpoint / "templates" / "chat.jinja").write_text("x")
    found = load_checkpoint(recipe(), checkpoint)
    assert set(found.keep) - {"generation_config.json"} == {"README.md", "config.json", "templates/chat.jinja"}


def copy(checkpoint: Path, folder: Path) -> Path:
    folder.mkdir()
    for path in checkpoint.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


def test_missing_weights_are_refused_where_the_framework_would_make_them_up(bert: Path) -> None:
    assert refused(SourceError, recipe(class_="BertForSequenceClassification"), bert) == (
        'models.m: the checkpoint lacks "bert.pooler.dense.bias", "bert.pooler.dense.weight", "classifier.bias", '
        '"classifier.weight", which BertForSequenceClassification would fill with random values: name the class that '
        "it was saved from"
    )


@pytest.mark.parametrize(
    ("class_", "expected"),
    [
        ("BertForImages", r"models.m.class: transformers [\d.]+ has no BertForImages.*"),
        ("BertConfig", r"models.m.class: BertConfig of transformers is not a model"),
        ("BertTokenizer", r"models.m.class: BertTokenizer of transformers is not a model"),
        ("logging", r"models.m.class: logging of transformers is not a model"),
    ],
)
def test_a_class_that_is_none_is_refused(bert: Path, class_: str, expected: str) -> None:
    import re

    assert re.fullmatch(expected, refused(ConfigError, recipe(class_=class_), bert).partition(":  ")[0])


def test_an_adapter_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    assert refused(ConfigError, recipe(), tmp_path) == (
        "models.m.source: this is an adapter, not a model: merge it into its base model first "
        "(peft: merge_and_unload), then bake the result"
    )


def test_a_checkpoint_without_configuration_is_refused(tmp_path: Path) -> None:
    assert refused(ConfigError, recipe(), tmp_path) == (
        "models.m.source: not a checkpoint of transformers: it has no config.json"
    )


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"architectures": 3}', "\udcff"])
def test_a_configuration_that_is_none_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    assert refused(SourceError, recipe(), tmp_path).startswith(
        "models.m: config.json is not the configuration of a model: "
    )
    assert refused(SourceError, recipe(class_="BertForMaskedLM"), tmp_path).startswith(
        "models.m: BertForMaskedLM cannot load this checkpoint: "
    )


def test_a_configuration_without_architecture_wants_a_class(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    assert refused(ConfigError, recipe(), tmp_path) == (
        'models.m.class: config.json names no architecture: add class = "transformers:…"'
    )


def test_a_configuration_with_impossible_sizes_is_refused(bert: Path, tmp_path: Path) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    config = json.loads((bert / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"hidden_size": 17}))
    assert refused(SourceError, recipe(), checkpoint).startswith(
        "models.m: BertForMaskedLM cannot load this checkpoint: The hidden size (17) is not a multiple of"
    )


def test_weights_of_other_shapes_are_refused(bert: Path, tmp_path: Path) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    config = json.loads((bert / "config.json").read_text())
    (checkpoint / "config.json").write_text(json.dumps(config | {"vocab_size": 60}))
    assert refused(SourceError, recipe(), checkpoint).startswith(
        "models.m: BertForMaskedLM cannot load this checkpoint: "
    )


@pytest.mark.parametrize("damage", [b"", b"\0" * 7, b"\xff" * 8 + b"{}", b"garbage that is longer than a header"])
def test_damaged_safetensors_are_refused(bert: Path, tmp_path: Path, damage: bytes) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    (checkpoint / "model.safetensors").write_bytes(damage)
    assert refused(SourceError, recipe(), checkpoint).startswith(
        "models.m: BertForMaskedLM cannot load this checkpoint: "
    )


def test_truncated_safetensors_are_refused(bert: Path, tmp_path: Path) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    data = (bert / "model.safetensors").read_bytes()
    (checkpoint / "model.safetensors").write_bytes(data[: len(data) // 2])
    assert refused(SourceError, recipe(), checkpoint).startswith(
        "models.m: BertForMaskedLM cannot load this checkpoint: "
    )


def test_a_shard_that_is_missing_is_said(tmp_path: Path) -> None:
    checkpoint = save(tiny("BertForMaskedLM"), tmp_path / "c", "pickle shards")
    (checkpoint / "pytorch_model-00002-of-00002.bin").unlink()
    assert "pytorch_model-00002-of-00002.bin" in refused(SourceError, recipe(), checkpoint)


def test_a_pickle_that_wants_to_run_code_is_refused_and_runs_none(bert: Path, tmp_path: Path) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    (checkpoint / "model.safetensors").unlink()
    torch.save({"x": Evil(tmp_path / "proof"), **tiny("BertForMaskedLM").state_dict()},
               checkpoint / "pytorch_model.bin")  # fmt: skip
    assert refused(SourceError, recipe(), checkpoint).startswith(
        "models.m: refused: its pickle wants to construct posix.system, and loading that would run code"
    )
    assert not (tmp_path / "proof").exists()


def test_code_in_the_checkpoint_is_never_run(bert: Path, tmp_path: Path) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    config = json.loads((bert / "config.json").read_text())
    auto_map = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model", "AutoModelForMaskedLM": "evil.Model",
                "AutoTokenizer": ["evil.Tokenizer", None], "AutoProcessor": "evil.Processor"}  # fmt: skip
    (checkpoint / "config.json").write_text(json.dumps(config | {"auto_map": auto_map}))
    (checkpoint / "processor_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (checkpoint / "tokenizer_config.json").write_text(json.dumps({"auto_map": auto_map}))
    (checkpoint / "evil.py").write_text(f"open({str(tmp_path / 'proof')!r}, 'w')\n")
    for class_ in (None, "BertForMaskedLM", "AutoModelForMaskedLM"):
        try:
            load_checkpoint(recipe(class_=class_), checkpoint)
        except SourceError:
            assert class_ == "AutoModelForMaskedLM"
        assert not (tmp_path / "proof").exists()


def test_a_tokenizer_of_the_checkpoint_is_named_by_its_class(bert: Path, tmp_path: Path) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    (checkpoint / "vocab.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "word"]))
    processor = load_checkpoint(recipe(), checkpoint).options["processor"]
    assert processor is not None
    assert processor.startswith("BertTokenizer")


def test_files_that_make_no_processor_are_said_and_the_model_is_baked_without(
    bert: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint = copy(bert, tmp_path / "c")
    (checkpoint / "tokenizer.json").write_text("{}")
    assert load_checkpoint(recipe(), checkpoint).options["processor"] is None
    assert "cannot load a processor from its files: " in capsys.readouterr().err


def test_a_package_that_is_missing_is_named(bert: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(*_: Any, **__: Any) -> None:
        raise ImportError("BertTokenizer requires the sentencepiece library")

    monkeypatch.setattr("prebake_build.families.transformers._processor", missing)
    assert refused(ConfigError, recipe(), bert) == (
        "models.m: cannot import a package it needs: BertTokenizer requires the sentencepiece library "
        "(pip install 'prebake[transformers]')"
    )
