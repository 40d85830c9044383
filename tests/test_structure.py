"""A module comes from its structure as its constructor would have made it, and nothing else comes from it."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections import OrderedDict
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn

from architecture_checks import held_differences, state_differences
from baking import flip_byte, job, names, save, tiny, torch_job
from networks import Tagger
from prebake import layout, structure, timeline
from prebake.families import BakedModel
from prebake.loader import load
from prebake_build.digest import file_of
from prebake_build.worker import run
from runtime_fakes import change_manifest

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture(scope="module")
def baked_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bert")
    run(job(save(tiny("BertForMaskedLM"), root / "checkpoint", "safetensors"), root / "bert"))
    return root / "bert"


@pytest.fixture
def bert(baked_bert: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    shutil.copytree(baked_bert, tmp_path / "bert")
    return tmp_path / "bert"


def load_by(folder: Path) -> tuple[Any, str]:
    """The mapped module, and the spans that say how it was made."""
    before = len(timeline.process.spans)
    loaded = load(folder, ("mapped",))
    spans = {span.name for span in timeline.process.spans[before:]}
    return loaded.model, "constructor" if "skeleton" in spans else "structure"


def put_structure(folder: Path, text: str) -> None:
    """Another structure, as somebody would put it there who mends the manifest too."""
    (folder / layout.STRUCTURE).write_text(text)
    manifest = BakedModel.open(folder).manifest
    files = [file_of(folder, file.path).to_dict() for file in manifest.files]
    from prebake.manifest import File, set_digest

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
    from prebake.loader import FRAMEWORK_LOCK

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
    from prebake.tensors import map_tensors

    tensors = {name: tensor for path in baked.weights for name, tensor in map_tensors(path).items()}
    return structure.restore(baked, tensors, TransformersFamily())


# --- what must not be used ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_another_version_of_its_code_is_constructed(bert: Path, package: str, caplog: pytest.LogCaptureFixture) -> None:
    requires = dict(BakedModel.open(bert).manifest.requires)
    change_manifest(bert, requires=requires | {package: "0.0.1"})
    with caplog.at_level(logging.DEBUG, logger="prebake"):
        assert load_by(bert)[1] == "constructor"
    assert f"its structure was made with {package} 0.0.1, and {requires[package]} is installed" in caplog.text
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_damaged_one_is_not_read(bert: Path, caplog: pytest.LogCaptureFixture) -> None:
    flip_byte(bert / layout.STRUCTURE, 100)
    assert load_by(bert)[1] == "constructor"
    assert "bert: constructed, which is slower: " in caplog.text
    assert "its sha256 is not the manifest's" in caplog.text


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
        (_document("networks:Tagger"), "networks:Tagger"),
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
    assert f"structure.json: wants {wanted}, which no structure may name" in caplog.text


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "JSONDecodeError"),
        ("garbage", "JSONDecodeError"),
        ("[" * 100_000, "RecursionError"),
        ("{}", "KeyError: 'classes'"),
        ('{"classes": [], "objects": []}', "IndexError"),
        (_document("transformers.models.bert.configuration_bert:BertConfig"), "structure.json: "),
        (_document("torch.nn.modules.linear:Identity"), "tensors unused"),
        (_document(LINEAR, training=["dtype", "load"]), "load is no type of tensors"),
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


# --- at bake -----------------------------------------------------------------------------------------------------


def test_users_own_code_has_none(tmp_path: Path) -> None:
    (tmp_path / "checkpoint").mkdir()
    torch.save(Tagger().state_dict(), tmp_path / "checkpoint" / "weights.pth")
    run(torch_job(tmp_path / "checkpoint", tmp_path / "tagger", "networks:tagger"))
    assert json.loads((tmp_path / "tagger" / "manifest.json").read_text())["structure"] is None
    assert layout.STRUCTURE not in names(tmp_path / "tagger")
    assert load_by(tmp_path / "tagger")[1] == "constructor"


def test_a_module_with_a_closure_is_baked_without(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from transformers import BertForMaskedLM

    plain = BertForMaskedLM.__init__

    def with_closure(self: Any, config: Any) -> None:
        plain(self, config)
        self.scale = lambda value: value

    monkeypatch.setattr(BertForMaskedLM, "__init__", with_closure)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    assert "bert: every start will run its constructor: it holds a builtins:function" in capsys.readouterr().err
    assert layout.STRUCTURE not in names(tmp_path / "bert")
    assert load_by(tmp_path / "bert")[1] == "constructor"


def test_every_kind_of_attribute_is_read_back_as_it_was(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import BertForMaskedLM
    from transformers.generation import GenerationMode

    kept: dict[str, Any] = {
        "numbers": [1, 2.5, -0.0, float("inf"), True, None], "text": 'é"\n', "pair": (1, (2, "x")), "names": {"b", "a"},
        "table": {1: (2,), "x": {"y": [1]}}, "ordered": OrderedDict([("b", 1), ("a", 2)]), "empty": {},
        "dtype": torch.int8, "device": torch.device("cpu"), "size": torch.Size([1, 2]),
        "activation": partial(nn.functional.gelu, approximate="tanh"), "function": nn.functional.relu,
        "cls": nn.Linear, "member": GenerationMode.BEAM_SEARCH,
    }  # fmt: skip
    plain = BertForMaskedLM.__init__

    def keeping(self: Any, config: Any) -> None:
        plain(self, config)
        self.kept = kept
        self.layers = [self.cls, self.bert]

    monkeypatch.setattr(BertForMaskedLM, "__init__", keeping)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    model, how = load_by(tmp_path / "bert")
    assert how == "structure"
    assert model.layers[0] is model.cls
    assert model.layers[1] is model.bert
    activation, found = kept.pop("activation"), model.kept.pop("activation")
    assert (found.func, found.args, found.keywords) == (activation.func, activation.args, activation.keywords)
    assert model.kept == kept
    assert {name: type(value) for name, value in model.kept.items()} == {name: type(v) for name, v in kept.items()}
    assert list(model.kept["ordered"]) == ["b", "a"]
    assert str(model.kept["numbers"]) == str(kept["numbers"])


@pytest.mark.parametrize("path", ["{0}/config.json", ["{0}"], {"x": {"y": "{0}"}}])
def test_one_that_keeps_a_path_of_the_bake_is_not_kept(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], path: Any
) -> None:
    from transformers import BertForMaskedLM

    plain = BertForMaskedLM.__init__

    def keeping(self: Any, config: Any) -> None:
        plain(self, config)
        self.kept = json.loads(json.dumps(path).replace("{0}", str(tmp_path / "bert")))

    monkeypatch.setattr(BertForMaskedLM, "__init__", keeping)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    assert "bert: every start will run its constructor: it keeps a path" in capsys.readouterr().err
    assert layout.STRUCTURE not in names(tmp_path / "bert")


def test_one_that_reads_back_as_something_else_is_not_kept(
    baked_bert: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = structure.restore

    def other(*arguments: Any) -> nn.Module:
        module: Any = honest(*arguments)
        del module.bert.encoder.layer[1].attention.self.num_attention_heads
        return cast(nn.Module, module)

    monkeypatch.setattr("prebake_build.structures.restore", other)
    run(job(baked_bert.parent / "checkpoint", tmp_path / "bert"))
    assert "read back, it differs in bert.encoder.layer.1.attention.self" in capsys.readouterr().err
    assert layout.STRUCTURE not in names(tmp_path / "bert")


def test_a_checkpoint_with_a_file_of_that_name_is_refused(baked_bert: Path, tmp_path: Path) -> None:
    from prebake.errors import SourceError

    shutil.copytree(baked_bert.parent / "checkpoint", tmp_path / "checkpoint")
    (tmp_path / "checkpoint" / layout.STRUCTURE).write_bytes(b"")
    with pytest.raises(SourceError, match=r"has a structure\.json, and baked models need that name"):
        run(job(tmp_path / "checkpoint", tmp_path / "bert"))
