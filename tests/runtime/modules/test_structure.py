"""A module comes from its structure as its constructor would have made it, and nothing else comes from it."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from helpers.architecture_checks import held_differences, state_differences
from helpers.baking import flip_byte, job, load_by, save, tiny
from helpers.runtime_fakes import change_manifest
from prebake.baked import layout
from prebake.baked.model import BakedModel
from prebake.modules import structure
from prebake_build.baking.worker import run
from prebake_build.files.digest import file_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def bert(baked_bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(baked_bert, tmp_path / "bert")
    return tmp_path / "bert"


def put_structure(folder: Path, text: str) -> None:
    """Another structure, as somebody would put it there who mends the manifest too."""
    (folder / layout.STRUCTURE).write_text(text)
    manifest = BakedModel.open(folder).manifest
    files = [file_of(folder, file.path).to_dict() for file in manifest.files]
    from prebake.baked.manifest import File, set_digest

    change_manifest(folder, files=files, set_digest=set_digest(File(**file) for file in files))


def test_it_is_listed_in_the_manifest_and_used(bert: Path) -> None:
    manifest = BakedModel.open(bert).manifest
    assert manifest.structure == layout.STRUCTURE == "structure.json"
    assert layout.STRUCTURE in [file.path for file in manifest.files]
    assert load_by(bert)[1] == "structure"


def test_it_gives_what_the_constructor_gives(bert: Path) -> None:
    from_structure, how = load_by(bert)
    change_manifest(bert, requires={"torch": torch.__version__.partition("+")[0], "transformers": "0.0.1"})
    constructed, other = load_by(bert)
    assert (how, other) == ("structure", "constructor")
    assert held_differences(constructed, from_structure) == []
    assert state_differences(constructed, from_structure) == []
    assert repr(from_structure) == repr(constructed)
    inputs = {"input_ids": torch.arange(1, 9)[None], "output_hidden_states": True}
    with torch.inference_mode():
        theirs, ours = constructed(**inputs), from_structure(**inputs)
    assert torch.equal(theirs.logits, ours.logits)
    assert len(ours.hidden_states) == len(theirs.hidden_states) > 1


def test_tied_names_share_one_parameter_and_writing_stays_in_this_process(bert: Path) -> None:
    before = (bert / layout.WEIGHTS).read_bytes()
    model = load_by(bert)[0]
    embeddings = model.bert.embeddings.word_embeddings.weight
    assert model.cls.predictions.decoder.weight is embeddings
    with torch.no_grad():
        embeddings.fill_(7)
    assert float(model.cls.predictions.decoder.weight.detach().sum()) == 7 * embeddings.numel()
    assert (bert / layout.WEIGHTS).read_bytes() == before


def test_it_can_be_trained(bert: Path) -> None:
    model = load_by(bert)[0].train()
    model(input_ids=torch.arange(1, 9)[None], labels=torch.arange(1, 9)[None]).loss.backward()
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.bert.embeddings.word_embeddings.weight.grad.abs().sum() > 0


def test_paths_in_it_follow_the_folder(bert: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere" / "bert"
    moved.parent.mkdir()
    bert.rename(moved)
    model, how = load_by(moved)
    assert how == "structure"
    assert model.name_or_path == model.config.name_or_path == str(moved)
    assert str(bert).encode() not in (moved / layout.STRUCTURE).read_bytes()


def test_a_generation_configuration_knows_whether_it_was_changed(tmp_path: Path) -> None:
    """By Python's hash, which is another in each process: what the bake's process had would say "changed"."""
    run(job(save(tiny("GPT2LMHeadModel"), tmp_path / "checkpoint", "safetensors"), tmp_path / "gpt2"))
    model, how = load_by(tmp_path / "gpt2")
    assert how == "structure"
    found = model.generation_config
    assert found._original_object_hash == hash(found)
    assert '"_original_object_hash":0' in (tmp_path / "gpt2" / layout.STRUCTURE).read_text()
    with torch.inference_mode():
        tokens = model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=3, do_sample=False)
    assert tokens.shape == (1, 6)


def test_reading_takes_no_lock_and_many_threads_may(bert: Path) -> None:
    from prebake.tiers.locks import FRAMEWORK_LOCK

    load_by(bert)  # imports
    found: list[str] = []
    with FRAMEWORK_LOCK:  # somebody constructs
        threads = [
            threading.Thread(
                target=lambda: found.append(type(restored(BakedModel.open(bert))).__name__), daemon=True
            )
            for _ in range(8)
        ]  # fmt: skip
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert found == ["BertForMaskedLM"] * 8


def restored(baked: BakedModel) -> nn.Module:
    from prebake.families.transformers import TransformersFamily
    from prebake.weights.tensors import map_tensors

    tensors = {name: tensor for path in baked.weights for name, tensor in map_tensors(path).items()}
    return structure.restore(baked, tensors, TransformersFamily())


# --- what must not be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_another_version_of_its_code_is_constructed(bert: Path, package: str, caplog: pytest.LogCaptureFixture) -> None:
    requires = dict(BakedModel.open(bert).manifest.requires)
    change_manifest(bert, requires=requires | {package: "0.0.1"})
    with caplog.at_level(logging.DEBUG, logger="prebake"):
        assert load_by(bert)[1] == "constructor"
    assert f"its structure was made with {package} 0.0.1, but {requires[package]} is installed" in caplog.text
    warnings = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert {record.name for record in warnings} <= {
        "prebake.tiers.drift"
    }  # once in a process, for another test perhaps


def test_a_damaged_one_is_not_read(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip_byte(bert / layout.STRUCTURE, 100)
    assert load_by(bert)[1] == "constructor"
    assert "bert: constructed without its structure, which is slower: " in caplog.text
    assert "its sha256 differs from the manifest's" in caplog.text


LINEAR = "torch.nn.modules.linear:Linear"


def _document(*classes: str, **attributes: Any) -> str:
    """A structure of one object of the first class, with attributes as they are written down."""
    return json.dumps({"classes": classes, "objects": [[0, {}, attributes, False]]})


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (_document("os:system"), "os:system"),
        (_document("builtins:eval"), "builtins:eval"),
        (_document("subprocess:Popen"), "subprocess:Popen"),
        (_document("helpers.networks:Tagger"), "helpers.networks:Tagger"),
        (_document("torch.serialization:load"), "torch.serialization:load"),
        (_document("torch.serialization:os.system"), "torch.serialization:os.system"),
        (_document("transformers.utils.hub:os.mkdir"), "transformers.utils.hub:os.mkdir"),
        (_document("torch.nn:Linear"), "torch.nn:Linear"),  # by another name than its own
        (_document("torch.fx.graph_module:GraphModule"), "torch.fx.graph_module:GraphModule"),
        (_document("torch.fx._lazy_graph_module:_LazyGraphModule"), "torch.fx._lazy_graph_module:_LazyGraphModule"),
        (_document("torch.jit._script:RecursiveScriptModule"), "torch.jit._script:RecursiveScriptModule"),
        (_document("transformers.training_args:TrainingArguments"), "transformers.training_args:TrainingArguments"),
        (_document(LINEAR, forward=["function", "os:system"]), "os:system"),
        (_document(LINEAR, forward=["partial", "os:system", ["tuple", "true"], ["dict"]]), "os:system"),
        (_document(LINEAR, forward=["function", "torch:load"]), "torch:load"),
    ],
)
def test_what_it_may_not_name_is_refused(bert: Path, text: str, wanted: str, caplog: pytest.LogCaptureFixture) -> None:
    put_structure(bert, text)
    model, how = load_by(bert)
    assert (type(model).__name__, how) == ("BertForMaskedLM", "constructor")
    assert f"structure.json: references {wanted}, which is not allowed in a structure" in caplog.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSONDecodeError"),
        ("garbage", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ("{}", "KeyError: 'classes'"),
        ('{"classes": [], "objects": []}', "IndexError"),
        (_document("transformers.models.bert.configuration_bert:BertConfig"), "structure.json: "),
        (_document("torch.nn.modules.linear:Identity"), "does not use "),
        (_document(LINEAR, training=["dtype", "load"]), "load is not a torch dtype"),
        (_document(LINEAR, training=["value", 1]), "AttributeError"),
        (_document(LINEAR, training=["__class__"]), "AttributeError"),
        (_document(LINEAR, training=["object", 7]), "IndexError"),
    ],
)
def test_what_is_no_structure_is_said_and_constructed(
    bert: Path, text: str, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    put_structure(bert, text)
    assert load_by(bert)[1] == "constructor"
    assert why in caplog.text


def test_a_tensor_that_was_not_baked_is_said(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (bert / layout.STRUCTURE).read_text()
    put_structure(bert, text.replace("cls.predictions.bias", "cls.predictions.Bias"))
    assert load_by(bert)[1] == "constructor"
    assert "KeyError: 'cls.predictions.Bias'" in caplog.text


def test_a_manifest_that_names_a_structure_it_does_not_list_is_refused(bert: Path) -> None:
    from prebake.errors import DocumentError

    change_manifest(bert, structure="other.json")
    with pytest.raises(DocumentError, match=r'structure: "other.json" is not among the files'):
        BakedModel.open(bert)
