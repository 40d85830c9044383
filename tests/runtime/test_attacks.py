"""One demonstration of each danger in a folder that somebody else wrote, and that nothing comes of it.

The folder is right in itself: whoever can write it can write its hashes too. What must not happen is that it chooses
code. Each attack leaves a file where it succeeds.
"""

from __future__ import annotations

import importlib
import json
import pickle
import shutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import Evil, load_by, prebake
from helpers.runtime_fakes import bake_module, change_manifest
from prebake import Models, PrebakeError, load
from prebake.baked import layout
from prebake.baked.manifest import File, set_digest
from prebake.baked.model import BakedModel
from prebake_build.files.digest import file_of

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What an attack leaves."""
    return tmp_path / "proof"


@pytest.fixture
def bert(baked_bert: Path, tmp_path: Path) -> Path:
    return shutil.copytree(baked_bert, tmp_path / "bert")


def put(folder: Path, changes: Mapping[str, Any] | None = None, without: str = "") -> None:
    """Change the manifest, and have it list the files that stand there."""
    names = sorted(path.name for path in folder.iterdir() if path.name not in (layout.MANIFEST, without))
    files = [file_of(folder, name).to_dict() for name in names]
    if without:
        (folder / without).unlink()
    change_manifest(folder, files=files, set_digest=set_digest(File(**file) for file in files), **changes or {})


def noting(function: Callable[..., Any], asked: list[str], skip: int = 0) -> Callable[..., Any]:
    """The function, which also notes the name it is asked for: the argument after the first `skip`."""

    def noted(*arguments: Any) -> Any:
        asked.append(arguments[skip])
        return function(*arguments)

    return noted


def outcome(folder: Path) -> str:
    """The message with which the folder is refused, or `loaded`."""
    try:
        load(folder)
    except PrebakeError as error:
        return str(error)
    return "loaded"


# --- a factory of the manifest's choice --------------------------------------------------------------------------


@pytest.mark.parametrize("factory", ["os:system", "posix:system"])
def test_a_command_as_the_class(tmp_path: Path, proof: Path, factory: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = bake_module(tmp_path / "models", "model", "helpers.runtime_fakes:plain")
    put(folder, {"class": factory, "options": {"arguments": {"command": f"touch {proof}"}}})
    module = factory.partition(":")[0]
    assert outcome(folder) == (
        f'{folder}: class: "{factory}" is code that the application does not allow (allowed: helpers)'
        ": a manifest alone must not decide what is imported. If you trust it, allow its module: "
        f'PREBAKE_ALLOW={module}, --allow {module}, or allow=["{module}"] for prebake.Models and prebake.load'
    )
    assert not proof.exists()
    code, out, _ = prebake(capsys, "verify", folder.parent)
    assert (code, out.partition("files as promised; ")[2]) == (
        0, f'names the code "{factory}", which loads only where PREBAKE_ALLOW names {module}\n'
    )  # fmt: skip


def test_a_command_that_an_allowed_module_imports(tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "victim.py").write_text("from os import system\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder, _ = bake_module(tmp_path / "models", "model", "helpers.runtime_fakes:plain")
    put(folder, {"class": "victim:system", "options": {"arguments": {"command": f"touch {proof}"}}})
    monkeypatch.setenv("PREBAKE_ALLOW", "victim")
    assert "victim:system is defined in posix, which is not allowed (allowed: victim)" in outcome(folder)
    assert not proof.exists()


@pytest.mark.parametrize("family", ["torch", "transformers"])
def test_a_module_that_acts_when_it_is_imported(
    tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(proof)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder, _ = bake_module(tmp_path / "models", "model", "helpers.runtime_fakes:plain")
    put(folder, {"family": family, "class": "planted:x", "options": {}})
    assert outcome(folder) != "loaded"
    assert not proof.exists()
    assert "planted" not in sys.modules


@pytest.mark.parametrize("factory", ["torch.hub:load", "torch:load", "torch.utils.cpp_extension:load"])
def test_what_torch_itself_offers(tmp_path: Path, factory: str) -> None:
    folder, _ = bake_module(tmp_path / "models", "model", "helpers.runtime_fakes:plain")
    put(folder, {"class": factory})
    assert f'class: "{factory}" is code that the application does not allow' in outcome(folder)


# --- a warm-up of the manifest's choice --------------------------------------------------------------------------


@pytest.mark.parametrize("warm_up", ["planted:x", "os:system", "helpers.networks.__main__:x"])
def test_a_function_that_warms_up(
    tmp_path: Path, proof: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, warm_up: str
) -> None:
    (tmp_path / "planted.py").write_text(f"open({str(proof)!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    folder, _ = bake_module(tmp_path / "models", "model", "helpers.runtime_fakes:plain")
    put(folder, {"loading": {"warmup": warm_up}})
    assert Models(folder.parent, warm=True)["model"].tier == "mapped"
    assert f'{folder}: loading.warmup: "{warm_up}" is code that the application does not allow' in caplog.text
    assert not proof.exists()


@pytest.mark.parametrize("method", ["__init__", "load_state_dict", "save_pretrained", "push_to_hub"])
def test_a_method_that_warms_up(bert: Path, method: str) -> None:
    put(bert, {"loading": {"warmup": {"method": method, "inputs": {"save_directory": "/tmp"}}}})
    assert outcome(bert).startswith(
        f'{bert}/manifest.json: loading.warmup.method: "{method}" is not one of forward, generate'
    )


@pytest.mark.parametrize(
    "inputs", [{"custom_generate": "planted"}, {"trust_remote_code": True}, {"trust_remote_code": [1]}]
)
def test_code_that_generate_would_run(tmp_path: Path, bert: Path, proof: Path, inputs: Any) -> None:
    """transformers runs `custom_generate/generate.py` of a folder or a hub that these name."""
    folder = tmp_path / "planted" / "custom_generate"
    folder.mkdir(parents=True)
    (folder / "generate.py").write_text(f"open({str(proof)!r}, 'w')\n")
    inputs = {name: str(folder.parent) if value == "planted" else value for name, value in inputs.items()}
    put(bert, {"loading": {"warmup": {"method": "generate", "inputs": {"input_ids": [[1]], **inputs}}}})
    name = next(iter(inputs))
    assert outcome(bert).startswith(f"{bert}/manifest.json: loading.warmup.inputs.{name}: generate takes tensors from ")
    assert not proof.exists()


# --- classes of the frameworks -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["pipeline", "models", "models.bert", "set_seed", "utils", "__builtins__", "os.system"]
)
@pytest.mark.parametrize("key", ["class", "processor"])
def test_what_transformers_offers_beside_classes(
    bert: Path, monkeypatch: pytest.MonkeyPatch, name: str, key: str
) -> None:
    import transformers

    asked: list[str] = []
    lazy = type(transformers)
    monkeypatch.setattr(lazy, "__getattr__", noting(lazy.__getattr__, asked, skip=1))
    options = {"dtype": "float32", "processor": name if key == "processor" else None}
    put(bert, {"options": options} | ({"class": name} if key == "class" else {}))
    place, kind = ("class", "model") if key == "class" else ("options.processor", "processor")
    assert outcome(bert).startswith(
        f"{bert}: {place}: {name} of transformers is not a {kind} (expected a class derived"
    )
    assert name not in asked


@pytest.mark.parametrize("name", ["BertConfig", "Trainer", "BertTokenizer", "AutoModel", "GenerationConfig"])
def test_a_class_that_is_no_model(bert: Path, name: str) -> None:
    put(bert, {"class": name})
    assert outcome(bert) == (
        f"{bert}: class: {name} of transformers is not a model (expected a class derived from PreTrainedModel)"
    )


@pytest.mark.parametrize("name", ["BertConfig", "Trainer", "BertForMaskedLM", "AutoProcessor", "GenerationConfig"])
def test_a_class_that_is_no_processor(bert: Path, name: str) -> None:
    put(bert, {"options": {"dtype": "float32", "processor": name}})
    assert outcome(bert) == (
        f"{bert}: options.processor: {name} of transformers is not a processor (expected a class derived from "
        "FeatureExtractionMixin, ImageProcessingMixin, PreTrainedTokenizerBase, ProcessorMixin)"
    )


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "load"}, 'options.dtype: "load" is not a torch dtype'),
        ({"dtype": ["load"]}, "options.dtype: expected a string, found a list"),
        ({"processor": {"a": 1}}, "options.processor: expected a string, found a table"),
        ({"frozen": "weight"}, 'options.frozen: expected a list, found the string "weight"'),
        ({"trust_remote_code": True}, "options.trust_remote_code: unknown key (known: dtype, processor, frozen)"),
    ],
)
def test_options_of_transformers_are_of_their_types(bert: Path, options: Any, expected: str) -> None:
    put(bert, {"options": options, "structure": None})
    assert outcome(bert) == f"{bert}: {expected}"


def test_a_pickle_in_place_of_the_weights(bert: Path, proof: Path) -> None:
    """The library's own loader would read it where it finds no safetensors."""
    (bert / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(proof)))
    (bert / layout.WEIGHTS).rename(bert / "weights.safetensors")
    weights = BakedModel.open(bert).manifest.weights.to_dict() | {"files": ["weights.safetensors"]}
    put(bert, {"structure": None, "weights": weights}, without=layout.STRUCTURE)
    with pytest.raises(PrebakeError, match="no tier could load it"):
        load(bert, tiers=("ordinary",))
    assert not proof.exists()


RECOGNIZER = {"generation": 2, "classes": 10}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"recognizer": RECOGNIZER | {"generation": 3}}, "recognizer.generation: 3 is not one of 1, 2"),
        ({"recognizer": RECOGNIZER | {"generation": "2"}}, "recognizer.generation: expected a whole number, found the "
                                                          'string "2"'),
        ({"recognizer": RECOGNIZER | {"classes": 10**9}}, "recognizer.classes: 1000000000 is not between 1 and "
                                                          "100,000"),
        ({"recognizer": RECOGNIZER | {"module": "os"}}, "recognizer.module: unknown key (known: generation, classes)"),
        ({"recognizer": []}, "recognizer: expected a table, found a list"),
        ({"quantize": 1}, "quantize: expected true or false, found a whole number (1)"),
        ({"languages": ["../../etc/passwd"]}, 'languages: "../../etc/passwd" is not a language code'),
        ({"languages": "ko"}, 'languages: expected a list, found the string "ko"'),
        ({"download": True}, "download: unknown key (known: languages, quantize, recognizer)"),
    ],
)  # fmt: skip
def test_options_of_easyocr_are_of_their_types(tmp_path: Path, changes: Any, expected: str) -> None:
    folder, _ = bake_module(tmp_path / "models", "model", "helpers.runtime_fakes:plain")
    options = {"languages": ["ko"], "quantize": True, "recognizer": RECOGNIZER} | changes
    put(folder, {"family": "easyocr", "options": options, "class": "Reader"})
    assert outcome(folder) == f"{folder}: options.{expected}"


# --- classes of a structure --------------------------------------------------------------------------------------

LINEAR = "torch.nn.modules.linear:Linear"


def put_structure(folder: Path, *classes: str, **attributes: Any) -> None:
    document = {"classes": classes, "objects": [[0, {}, attributes, False]]}
    (folder / layout.STRUCTURE).write_text(json.dumps(document))
    put(folder)


@pytest.mark.parametrize(
    "name",
    [
        "torch.utils.model_dump.__main__:x",  # a program: it reads sys.argv and leaves by SystemExit
        "torch.utils.bottleneck.__main__:x",
        "torch.distributed.run:x",
        "torch.nn.modules.__main__:x",
        "torch.nn.modules._functions:SyncBatchNorm",
        "transformers.models.bert.convert_bert_original_tf_checkpoint_to_pytorch:BertConfig",
        "transformers.models.bert.modular_bert:BertConfig",
        "transformers.cli.serve:Serve",
        "transformers.__main__:x",
        "transformers.models.__main__:x",
        "transformers.testing_utils:TestCasePlus",
    ],
)
def test_a_module_that_a_structure_must_not_import(
    bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, name: str
) -> None:
    put_structure(bert, name)
    imported: list[str] = []
    monkeypatch.setattr(importlib, "import_module", noting(importlib.import_module, imported))
    model, how = load_by(bert)
    assert (type(model).__name__, how) == ("BertForMaskedLM", "constructor")
    assert f"structure.json: references {name}, which is not allowed in a structure" in caplog.text
    assert name.partition(":")[0] not in imported


def test_a_module_that_leaves_the_process(
    bert: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Among those that may be imported none does; if a version has one, the model is constructed."""
    put_structure(bert, "torch.nn.modules.absent:x")
    monkeypatch.setattr("prebake.modules.structure.importlib.import_module", lambda name: sys.exit(3))
    assert load_by(bert)[1] == "constructor"
    assert "references torch.nn.modules.absent, whose import raised SystemExit(3)" in caplog.text


@pytest.mark.parametrize(
    ("classes", "attributes"),
    [
        ((LINEAR,), {"training": ["dtype", "planted"]}),
        (("torch.nn.modules.linear:torch.planted",), {}),
    ],
)  # fmt: skip
def test_what_torch_imports_when_it_is_asked_for(
    bert: Path, monkeypatch: pytest.MonkeyPatch, classes: tuple[str, ...], attributes: Any
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(torch, "__getattr__", noting(torch.__getattr__, asked))
    put_structure(bert, *classes, **attributes)
    assert load_by(bert)[1] == "constructor"
    assert "planted" not in asked
