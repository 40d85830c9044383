"""Which files of a hub's repository are taken: weights by family and variant, and every small file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from helpers.hub_server import REPO, HubServer
from prebake.errors import SourceError
from prebake_build.declared.spec import read_spec
from prebake_build.families.family import wanted_of
from prebake_build.sources.selection import SMALL, choose

MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
]
SENTENCES = {
    "modules.json": json.dumps(MODULES).encode(),
    "config.json": b"{}",
    "config_sentence_transformers.json": b"{}",
    "sentence_bert_config.json": b"{}",
    "model.safetensors": b"weights",
    "1_Pooling/config.json": b"{}",
    "2_Dense/config.json": b"{}",
    "2_Dense/model.safetensors": b"dense",
}
OTHERS = {
    "2_Dense/pytorch_model.bin": b"the same as a pickle",
    "pytorch_model.bin": b"the same as a pickle",
    "onnx/model.onnx": b"",
    "onnx/config.json": b"{}",
    "openvino/openvino_model.xml": b"",
    "modeling_custom.py": b"",
    "README.md": b"card",
    ".gitattributes": b"",
    "train_script.ipynb": b"",
    "trainer_state.json": b"{}",
    "runs/events.out.tfevents.1": b"",
    "checkpoint-500/config.json": b"{}",
    "model.safetensors.index.fp16.json": b"{}",
    "adapter_config.json": b"{}",
    "picture.png": b"",
    "vectors.npz": b"",
}
PIPELINE = {
    "_class_name": "StableDiffusionPipeline", "unet": ["diffusers", "UNet2DConditionModel"],
    "text_encoder": ["transformers", "CLIPTextModel"], "tokenizer": ["transformers", "CLIPTokenizer"],
    "scheduler": ["diffusers", "DDIMScheduler"], "safety_checker": [None, None], "requires_safety_checker": False,
}  # fmt: skip
UNET = "unet/diffusion_pytorch_model"
DRAWING = [
    "model_index.json", "unet/config.json", "text_encoder/config.json", "tokenizer/vocab.json", "tokenizer/merges.txt",
    "scheduler/scheduler_config.json",
]  # fmt: skip
WEIGHTS = [
    f"{UNET}.safetensors", f"{UNET}.fp16.safetensors", f"{UNET}.bin", f"{UNET}.non_ema.safetensors",
    "text_encoder/model.safetensors", "text_encoder/pytorch_model.bin", "text_encoder/model.fp16.safetensors",
    "safety_checker/model.safetensors", "safety_checker/config.json", "v1-5-pruned.safetensors", "v1-5-pruned.ckpt",
    "feature/flax_model.msgpack",
]  # fmt: skip


def declared(tmp_path: Path, lines: str) -> list[str]:
    """The files that a model of the local hub's repository resolves to."""
    path = tmp_path / "models.toml"
    path.write_text(f'[models.m]\nsource = "hf:{REPO}"\n{lines}')
    spec = read_spec(path)
    return [file.path for file in spec.open(spec.models[0]).resolve().files]


def drawing(family: str | None, **options: str) -> list[str]:
    paths = [*DRAWING, *WEIGHTS]
    index = json.dumps(PIPELINE)
    return list(choose(paths, lambda _: index, "hf:a/b", wanted_of(family, options, "x"), dict.fromkeys(paths, 10)))


@pytest.mark.parametrize("lines", ['class = "sentence-transformers:SentenceTransformer"\n'])
def test_sentence_transformers_gets_its_modules(hub: HubServer, tmp_path: Path, lines: str) -> None:
    hub.files = SENTENCES | OTHERS
    assert declared(tmp_path, lines) == sorted(SENTENCES)


def test_a_network_gets_every_small_file_too(hub: HubServer, tmp_path: Path) -> None:
    hub.files = SENTENCES | OTHERS
    expected = sorted(SENTENCES.keys() - {"2_Dense/model.safetensors"})
    assert declared(tmp_path, "") == declared(tmp_path, 'class = "transformers:BertModel"\n') == expected


def test_an_unknown_file_is_small_up_to_a_limit() -> None:
    sizes = {"model.safetensors": 10, "tables.dat": SMALL, "more.dat": SMALL + 1, "tokenizer.json": SMALL * 4}
    assert choose([*sizes, "unknown.dat"], lambda _: "", "x", None, sizes) == (
        "model.safetensors", "tables.dat", "tokenizer.json"
    )  # fmt: skip


@pytest.mark.parametrize("family", ["diffusers", None])
def test_a_pipeline_gets_the_weights_of_its_components(family: str | None) -> None:
    assert drawing(family) == sorted([*DRAWING, f"{UNET}.safetensors", "text_encoder/model.safetensors"])


def test_a_variant_is_taken_where_there_is_one() -> None:
    fp16 = [f"{UNET}.fp16.safetensors", "text_encoder/model.fp16.safetensors"]
    assert drawing("diffusers", variant="fp16") == sorted([*DRAWING, *fp16])
    non_ema = [f"{UNET}.non_ema.safetensors", "text_encoder/model.safetensors"]
    assert drawing("diffusers", variant="non_ema") == sorted([*DRAWING, *non_ema])


def test_a_variant_that_is_not_there_is_refused_with_what_is() -> None:
    with pytest.raises(SourceError) as error:
        drawing("diffusers", variant="bf16")
    assert str(error.value).startswith('hf:a/b: has no weights of the variant "bf16" (found ')
    assert "and " in str(error.value) and len(str(error.value)) < 500


def test_shards_of_a_variant_stand_beside_their_index() -> None:
    index = "unet/diffusion_pytorch_model.safetensors.index.fp16.json"
    shard = "diffusion_pytorch_model.fp16-00001-of-00001.safetensors"
    texts = {"model_index.json": json.dumps(PIPELINE), index: json.dumps({"weight_map": {"a": shard}})}
    paths = [*texts, f"unet/{shard}", "unet/config.json"]
    wanted = wanted_of("diffusers", {"variant": "fp16"}, "x")
    assert choose(paths, texts.__getitem__, "x", wanted, dict.fromkeys(paths, 1)) == tuple(sorted(paths))


def test_timm_and_torch_know_more_names() -> None:
    paths = ["open_clip_pytorch_model.bin", "open_clip_config.json"]
    for family in ("timm", "torch"):
        assert choose(paths, lambda _: "", "x", wanted_of(family, {}, "x"), dict.fromkeys(paths, 1)) == (
            "open_clip_config.json", "open_clip_pytorch_model.bin"
        )  # fmt: skip


def test_declared_files_are_taken_and_no_others() -> None:
    paths = ["a.pth", "b.pth", "model.safetensors"]
    assert choose(paths, lambda _: "", "x", wanted_of("torch", {"file": ["b.pth"]}, "x")) == ("b.pth",)
    with pytest.raises(SourceError) as error:
        choose(paths, lambda _: "", "hf:a/b", wanted_of("torch", {"file": "c.pth"}, "x"))
    assert str(error.value) == "hf:a/b: has no c.pth (found a.pth, b.pth, model.safetensors)"


@pytest.mark.parametrize(
    ("index", "text", "family", "message"),
    [
        ("model_index.json", "[]", "diffusers", "model_index.json: is not the index of a pipeline: "),
        ("modules.json", '[{"name": "0", "type": "x", "path": "../x"}]', "sentence-transformers",
         'modules.json: "../x" leaves the checkpoint'),
    ],
)  # fmt: skip
def test_an_index_of_folders_that_is_none_is_refused(index: str, text: str, family: str, message: str) -> None:
    with pytest.raises(SourceError) as error:
        choose([index, "model.safetensors"], lambda _: text, "hf:a/b", wanted_of(family, {}, "x"))
    assert str(error.value).startswith(f"hf:a/b: {message}")


def test_a_variant_is_a_word_and_of_some_families(tmp_path: Path) -> None:
    for lines, message in (
        ('class = "transformers:BertModel"\nvariant = "fp 16"\n',
         'variant: "fp 16" is not a variant (expected a word such as "fp16")'),
        ('class = "timm:resnet18"\nvariant = "fp16"\n',
         "variant: is only for the family transformers or diffusers (this model's family is timm)"),
    ):  # fmt: skip
        with pytest.raises(Exception, match="variant") as error:
            declared(tmp_path, lines)
        assert str(error.value) == f"{tmp_path}/models.toml: models.m.{message}"
