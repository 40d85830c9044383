"""`from_pretrained` returns from the map what the library would have returned, or says why not."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoTokenizer, BertModel

from helpers.adopted import COMMIT
from prebake.adopt import loads
from prebake.adopt.catalogue import catalogue
from prebake.adopt.view import view_folder
from prebake.errors import ConfigError
from prebake.families.compat import torchvision_operators

torchvision_operators()

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
Use = Callable[[Path], None]

pytestmark = [pytest.mark.usefixtures("hooked"), pytest.mark.filterwarnings("ignore")]


def outcomes() -> list[tuple[str, str | None]]:
    return [(load.outcome, load.reason) for load in loads.loads]


def ordinary(cls: Any, name: str, **kwargs: Any) -> Any:
    """What the library returns for the name, from the view, without Prebake."""
    with loads.inside():
        view = view_folder(catalogue(), catalogue().models[0].folder.parent)
        return cls.from_pretrained(name, cache_dir=str(view), **kwargs)


def told(model: Any) -> dict[str, Any]:
    """Everything that stands on the model and its parts, besides tensors and parts."""
    found: dict[str, Any] = {}
    for path, part in model.named_modules():
        for name, value in vars(part).items():
            if name in (
                "_parameters",
                "_buffers",
                "_modules",
                "_use_kernels",
                "_weight_conversions",
                "_load_state_dict_pre_hooks",
            ):
                continue
            plain = value.to_dict() if hasattr(value, "to_dict") else value
            plain = plain.tolist() if isinstance(plain, torch.Tensor) else plain
            found[f"{path}.{name}"] = repr(plain) if callable(plain) else plain
    return found


def assert_same(mapped: Any, plain: Any) -> None:
    assert type(mapped) is type(plain)
    assert mapped is not plain
    one, other = told(mapped), told(plain)
    assert {key for key in one | other if one.get(key, "missing") != other.get(key, "missing")} == set()
    for kind in ("named_parameters", "named_buffers"):
        ones, others = (dict(getattr(model, kind)(remove_duplicate=False)) for model in (mapped, plain))
        assert ones.keys() == others.keys()
        for name, tensor in ones.items():
            assert torch.equal(tensor, others[name]) and tensor.dtype == others[name].dtype, name
            assert tensor.requires_grad == others[name].requires_grad
    assert mapped.training is plain.training is False
    assert vars(mapped.config).keys() == vars(plain.config).keys()
    if plain.can_generate():
        assert mapped.generation_config.to_dict() == plain.generation_config.to_dict()


def test_real_weights_answer_bit_by_bit_alike(minilm: Path, use: Use) -> None:
    use(minilm)
    mapped = AutoModel.from_pretrained(MINILM)
    assert outcomes() == [("mapped", None)]
    plain = ordinary(AutoModel, MINILM)
    assert_same(mapped, plain)
    assert (mapped.name_or_path, mapped.config.name_or_path) == (MINILM, MINILM)
    tokenizer = AutoTokenizer.from_pretrained(MINILM)
    assert tokenizer.name_or_path == MINILM
    inputs = tokenizer(["A cat sits.", "Weights are mapped."], padding=True, return_tensors="pt")
    with torch.no_grad():
        assert torch.equal(mapped(**inputs).last_hidden_state, plain(**inputs).last_hidden_state)


@pytest.mark.parametrize(("auto", "name"), [(AutoModelForMaskedLM, "bert"), (AutoModelForCausalLM, "gpt2")])
def test_tied_weights_and_generation_are_the_library_s(tinies: Path, use: Use, auto: Any, name: str) -> None:
    use(tinies)
    mapped, plain = auto.from_pretrained(f"acme/{name}"), ordinary(auto, f"acme/{name}")
    assert outcomes() == [("mapped", None)]
    assert_same(mapped, plain)
    assert mapped.get_output_embeddings().weight is mapped.get_input_embeddings().weight
    if name == "gpt2":
        ids = torch.tensor([[1, 2, 3]])
        assert torch.equal(mapped.generate(ids, max_new_tokens=4), plain.generate(ids, max_new_tokens=4))


def test_each_call_returns_an_object_of_its_own(tinies: Path, use: Use) -> None:
    use(tinies)
    one, other = (AutoModelForMaskedLM.from_pretrained("acme/bert") for _ in range(2))
    with torch.no_grad():
        next(one.parameters()).zero_()
    one.config.changed = True
    assert next(other.parameters()).abs().sum() > 0
    assert not hasattr(other.config, "changed")


def test_a_model_of_models_keeps_the_mapped_weights(tinies: Path, use: Use) -> None:
    """`post_init` initialises modules that nobody has marked as loaded."""
    use(tinies)
    inner = AutoModelForMaskedLM.from_pretrained("acme/bert")
    before = inner.bert.embeddings.word_embeddings.weight.clone()

    class Outer(transformers.PreTrainedModel):  # type: ignore[misc]
        config_class = transformers.BertConfig
        _supports_sdpa = True

        def __init__(self, config: Any) -> None:
            super().__init__(config)
            self.inner = inner
            self.post_init()

    assert torch.equal(Outer(inner.config).inner.bert.embeddings.word_embeddings.weight, before)


@pytest.mark.parametrize(
    "arguments",
    [
        {"cache_dir": "/nonexistent", "token": "t", "local_files_only": True, "force_download": True},
        {"low_cpu_mem_usage": True, "use_safetensors": False, "weights_only": True, "trust_remote_code": True},
        {"dtype": torch.float32},
        {"torch_dtype": "auto"},
        {"attn_implementation": "sdpa"},
        {"revision": "main"},
        {"revision": COMMIT},
        {"device_map": "cpu"},
        {"subfolder": "", "variant": None, "quantization_config": None, "output_loading_info": False},
    ],
)
def test_arguments_that_change_nothing(minilm: Path, use: Use, arguments: dict[str, Any]) -> None:
    use(minilm)
    model = BertModel.from_pretrained(MINILM, **arguments)
    assert outcomes() == [("mapped", None)]
    assert model.config.name_or_path == MINILM


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"dtype": torch.bfloat16}, "dtype bfloat16, and float32 was baked"),
        ({"dtype": "float16"}, "dtype float16, and float32 was baked"),
        ({"attn_implementation": "eager"}, "attn_implementation='eager', and 'sdpa' was baked"),
        ({"output_loading_info": True}, "output_loading_info=True"),
        ({"ignore_mismatched_sizes": True}, "ignore_mismatched_sizes=True"),
        ({"output_attentions": True}, "output_attentions=True"),
    ],
)
def test_arguments_that_change_the_result(minilm: Path, use: Use, arguments: dict[str, Any], reason: str) -> None:
    use(minilm)
    model = BertModel.from_pretrained(MINILM, **arguments)
    assert outcomes() == [("baked folder", reason)]
    if "dtype" in arguments:
        assert str(model.dtype).removeprefix("torch.") == str(arguments["dtype"]).removeprefix("torch.")
    if "output_loading_info" in arguments:
        assert set(model[1]) >= {"missing_keys", "unexpected_keys"}


def test_positional_arguments_are_the_constructor_s(minilm: Path, use: Use) -> None:
    use(minilm)
    assert BertModel.from_pretrained(MINILM, False).pooler is None
    assert outcomes() == [("baked folder", "positional arguments for the model's constructor")]


def test_false_may_mean_something(minilm: Path, use: Use) -> None:
    use(minilm)
    model = BertModel.from_pretrained(MINILM, add_pooling_layer=False)
    assert model.pooler is None
    assert outcomes() == [("baked folder", "add_pooling_layer=False")]


def test_a_configuration_is_compared(minilm: Path, use: Use) -> None:
    use(minilm)
    AutoModel.from_pretrained(MINILM, config=AutoConfig.from_pretrained(MINILM))
    AutoModel.from_pretrained(MINILM, output_hidden_states=True)
    assert outcomes() == [
        ("mapped", None),
        ("baked folder", "a configuration with another output_hidden_states"),
    ]


def test_another_class_than_the_baked_one(tinies: Path, use: Use, caplog: pytest.LogCaptureFixture) -> None:
    use(tinies)
    with caplog.at_level(logging.INFO, "prebake.adopt"):
        for _ in range(2):
            model = AutoModel.from_pretrained("acme/bert")
    assert type(model).__name__ == "BertModel"
    assert [record.message for record in caplog.records if record.name == loads.__name__] == [
        "bert: hf:acme/bert loaded by transformers from the baked folder: it was baked as "
        "transformers:BertForMaskedLM, not as BertModel"
    ]
    assert loads.counts == {("transformers", "baked folder"): 2}


def test_the_path_of_a_snapshot_is_the_model(minilm: Path, use: Use) -> None:
    from huggingface_hub import file_download, snapshot_download

    use(minilm)
    assert file_download is not None
    view = view_folder(catalogue(), minilm)
    path = snapshot_download(MINILM, cache_dir=view, local_files_only=True)
    assert AutoModel.from_pretrained(path).config.name_or_path == path
    assert AutoModel.from_pretrained(minilm / "sentences").config.name_or_path == str(minilm / "sentences")
    assert [load.outcome for load in loads.loads if load.library == "transformers"] == ["mapped", "mapped"]


def test_what_is_not_baked_goes_to_the_library_and_is_said_once(
    tinies: Path, use: Use, caplog: pytest.LogCaptureFixture
) -> None:
    use(tinies)
    checkpoint = tinies.parent / "checkpoints" / "bert"
    with caplog.at_level(logging.INFO, "prebake.adopt"):
        for _ in range(2):
            AutoModelForMaskedLM.from_pretrained(checkpoint)
    assert caplog.messages == [
        f"path:{checkpoint}: not baked (baked: bert (hf:acme/bert), gpt2 (hf:acme/gpt2)): loaded by transformers as "
        "without Prebake"
    ]
    assert [(load.outcome, load.uri, load.class_, load.dtype) for load in loads.loads] == [
        ("original", f"path:{checkpoint}", "transformers:BertForMaskedLM", "float32")
    ] * 2


def test_strict_refuses_what_is_not_baked(tinies: Path, use: Use, monkeypatch: pytest.MonkeyPatch) -> None:
    use(tinies)
    monkeypatch.setenv("PREBAKE_STRICT", "1")
    checkpoint = tinies.parent / "checkpoints" / "bert"
    AutoModelForMaskedLM.from_pretrained("acme/bert")
    with pytest.raises(ConfigError) as caught:
        AutoModelForMaskedLM.from_pretrained(checkpoint)
    assert str(caught.value) == (
        f"path:{checkpoint}: is not baked, and PREBAKE_STRICT=1 refuses it (baked: bert (hf:acme/bert), "
        "gpt2 (hf:acme/gpt2)): add it to models.toml and bake it"
    )


def test_observing_records_and_redirects_nothing(
    tinies: Path, use: Use, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    use(tinies)
    monkeypatch.setenv("PREBAKE_OBSERVE", str(tmp_path / "loads"))
    checkpoint = tinies.parent / "checkpoints" / "gpt2"
    AutoModelForCausalLM.from_pretrained(checkpoint)
    (line,) = (tmp_path / "loads").read_text().splitlines()
    load = json.loads(line)
    assert load.pop("seconds") > 0
    assert load == {
        "library": "transformers", "function": "GPT2LMHeadModel.from_pretrained", "uri": f"path:{checkpoint}",
        "class": "transformers:GPT2LMHeadModel", "dtype": "float32", "detail": {}, "outcome": "original",
        "model": None, "reason": "no model is baked", "obstacle": None,
    }  # fmt: skip


def test_a_damaged_model_is_loaded_by_the_library(tinies: Path, use: Use, tmp_path: Path) -> None:
    import shutil

    shutil.copytree(tinies, tmp_path / "models")
    (tmp_path / "models" / "bert" / "structure.json").write_text("{}")
    use(tmp_path / "models")
    AutoModelForMaskedLM.from_pretrained("acme/bert")
    ((outcome, reason),) = outcomes()
    assert outcome == "baked folder"
    assert reason is not None and "structure.json: expected" in reason


def test_prebake_s_own_loads_are_not_redirected(tinies: Path, use: Use) -> None:
    import prebake

    use(tinies)
    loaded = prebake.load(tinies / "bert", ("ordinary",))
    assert loaded.tier == "ordinary"
    assert loads.loads == []
