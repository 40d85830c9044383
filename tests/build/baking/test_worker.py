"""A job makes a model folder that loads to the same bits, whichever way it is loaded."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_model

from helpers.baking import FORMS, TESTS, Evil, job, save, tiny, torch_job
from helpers.networks import Tagger
from prebake import load
from prebake.baked.header import read_header
from prebake.baked.manifest import Manifest
from prebake.errors import SourceError
from prebake.modules.assembly import slots
from prebake.tiers.loader import TIERS
from prebake_build.baking.prove import difference_of
from prebake_build.baking.worker import Job, run

MODELS = ("BertForMaskedLM", "GPT2LMHeadModel", "T5ForConditionalGeneration")


def same(expected: torch.nn.Module, found: torch.nn.Module) -> list[str]:
    """The names that differ, the tensors that a state dict leaves out counted."""
    held = {slot.key: slot.tensor for slot in slots(found)}
    return [slot.key for slot in slots(expected)
            if slot.key not in held or difference_of(slot.tensor, held[slot.key])]  # fmt: skip


# --- transformers ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_", MODELS)
@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_a_checkpoint_is_baked_to_the_same_weights(tmp_path: Path, class_: str, form: str) -> None:
    model = tiny(class_)
    run(job(save(model, tmp_path / "c", form), tmp_path / "m"))
    assert not same(model, load(tmp_path / "m", tiers=("mapped",)).model)
    run(job(save(model, tmp_path / "safetensors", "safetensors"), tmp_path / "other" / "m"))
    one, other = (Manifest.read(folder) for folder in (tmp_path / "m", tmp_path / "other" / "m"))
    assert [file for file in one.files if file.path in one.weights.all_files] == [
        file for file in other.files if file.path in other.weights.all_files
    ]


@pytest.mark.parametrize("class_", MODELS)
def test_tied_weights_are_stored_once_and_shared_when_loaded(tmp_path: Path, class_: str) -> None:
    model = tiny(class_)
    run(job(save(model, tmp_path / "c", "pickle"), tmp_path / "m"))
    weights = Manifest.read(tmp_path / "m").weights
    stored = set(read_header(tmp_path / "m" / "model.safetensors").entries)
    assert weights.aliases
    assert not weights.aliases.keys() & stored
    loaded = dict(load(tmp_path / "m", tiers=("mapped",)).model.named_parameters(remove_duplicate=False))
    for name, other in weights.aliases.items():
        if name in loaded:
            assert loaded[name] is loaded[other]


@pytest.mark.parametrize("class_", MODELS)
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_transformers_own_loader_reads_the_folder_in_the_baked_dtype(tmp_path: Path, class_: str, dtype: str) -> None:
    import transformers

    cls = getattr(transformers, class_)
    run(job(save(tiny(class_), tmp_path / "c", "pickle"), tmp_path / "m", dtype=dtype))
    plain = cls.from_pretrained(tmp_path / "m", dtype="auto")
    assert plain.dtype == getattr(torch, dtype)
    # not simply model.to(dtype): T5 keeps some layers in float32
    assert not same(cls.from_pretrained(tmp_path / "c", dtype=getattr(torch, dtype)), plain)
    assert not same(plain, load(tmp_path / "m", tiers=("mapped",)).model)


def test_the_manifest_tells_what_is_in_the_files(tmp_path: Path) -> None:
    run(job(save(tiny("BertForMaskedLM"), tmp_path / "c", "safetensors"), tmp_path / "m"))
    manifest = Manifest.read(tmp_path / "m")
    manifest.check_sizes(tmp_path / "m")
    headers = [read_header(tmp_path / "m" / file) for file in manifest.weights.all_files]
    assert manifest.weights.tensors == sum(len(header.entries) for header in headers)
    assert manifest.weights.bytes == sum(header.size for header in headers)
    assert sum(manifest.weights.dtypes.values()) == manifest.weights.tensors
    listed = {file.path for file in manifest.files} | {"manifest.json"}
    assert listed == {path.relative_to(tmp_path / "m").as_posix() for path in (tmp_path / "m").rglob("*")}
    assert manifest.source.uri == "path:checkpoint"
    assert manifest.requires.keys() == {"torch", "transformers"}


def test_a_checkpoint_with_a_manifest_of_its_own_is_refused(tmp_path: Path) -> None:
    checkpoint = save(tiny("BertForMaskedLM"), tmp_path / "c", "safetensors")
    (checkpoint / "manifest.json").write_text("{}")
    with pytest.raises(SourceError, match=r"has a manifest\.json, but baked models reserve that name$"):
        run(job(checkpoint, tmp_path / "m"))


# --- torch -------------------------------------------------------------------------------------------------------


@pytest.fixture
def tagger() -> Tagger:
    torch.manual_seed(11)
    module = Tagger()
    for _ in range(3):
        module(torch.randint(0, 11, (4, 5)))  # moves the running statistics
    return module.eval()


@pytest.mark.parametrize("form", ["pth", "legacy", "safetensors"])
def test_lstm_ties_parametrizations_and_unsaved_buffers_arrive(tmp_path: Path, tagger: Tagger, form: str) -> None:
    (tmp_path / "c").mkdir()
    if form == "safetensors":
        save_model(tagger, str(tmp_path / "c" / "w.safetensors"))
    else:
        torch.save(tagger.state_dict(), tmp_path / "c" / "w.pth", _use_new_zipfile_serialization=form == "pth")
    run(torch_job(tmp_path / "c", tmp_path / "m", "helpers.networks:tagger"))
    words = torch.arange(10).view(2, 5)
    with torch.inference_mode():
        expected = tagger(words)
        for tier in TIERS:
            loaded = load(tmp_path / "m", tiers=(tier,))
            assert (loaded.tier, loaded.fallback_reason) == (tier, None)
            assert not same(tagger, loaded.model)
            with warnings.catch_warnings():
                # weights that lie apart, as each mapped tensor does: cuDNN's concern, said on CPUs too
                warnings.filterwarnings("ignore", "RNN module weights are not part of single contiguous chunk")
                assert difference_of(expected, loaded.model(words)) is None


def test_shared_tensors_of_a_checkpoint_stay_shared_where_the_class_does_not_tie_them(tmp_path: Path) -> None:
    weight = torch.rand(4, 4)
    (tmp_path / "c").mkdir()
    torch.save({"0.weight": weight, "1.weight": weight}, tmp_path / "c" / "w.pth")
    run(torch_job(tmp_path / "c", tmp_path / "m", "helpers.networks:pair"))
    assert Manifest.read(tmp_path / "m").weights.aliases == {"1.weight": "0.weight"}
    loaded: Any = load(tmp_path / "m").model
    assert loaded[0].weight is loaded[1].weight
    assert difference_of(weight, loaded[0].weight) is None


def test_every_payload_of_a_nan_arrives(tmp_path: Path) -> None:
    bits = torch.tensor([0x7FC00000, 0x7FC00001, 0x7F800001, -1, 0x7F800000, -(2**31)], dtype=torch.int32)
    state = {"weight": bits.view(torch.float32).view(2, 3), "bias": torch.zeros(2)}
    (tmp_path / "c").mkdir()
    torch.save(state, tmp_path / "c" / "w.pth")
    run(torch_job(tmp_path / "c", tmp_path / "m", "helpers.networks:linear"))
    for tier in TIERS:
        loaded: Any = load(tmp_path / "m", tiers=(tier,)).model
        assert torch.equal(loaded.weight.detach().view(torch.int32), bits.view(2, 3))


# --- the process -------------------------------------------------------------------------------------------------


def work(job: Job, **environment: str) -> tuple[int, dict[str, str], str]:
    """Run the job in a process of its own: exit code, answer, standard error."""
    done = subprocess.run(
        [sys.executable, "-m", "prebake_build.baking.worker"], input=json.dumps(dataclasses.asdict(job)), text=True,
        capture_output=True, env={**os.environ, "PYTHONPATH": str(TESTS), **environment},
    )  # fmt: skip
    return done.returncode, json.loads(done.stdout) if done.stdout else {}, done.stderr


def test_the_answer_is_json_whatever_the_factory_prints(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "c" / "w.pth")
    code, answer, err = work(torch_job(tmp_path / "c", tmp_path / "m", "helpers.networks:chatty"))
    assert (code, answer) == (0, {})
    assert "printed by the factory" in err


def test_errors_travel_with_their_class(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    torch.save({"x": Evil(tmp_path / "proof")}, tmp_path / "c" / "w.pth")
    code, answer, _ = work(torch_job(tmp_path / "c", tmp_path / "m", "helpers.networks:linear"))
    assert (code, answer["error"]) == (0, "SourceError")
    assert answer["message"].startswith("models.m: w.pth: refused: its pickle wants to construct posix.system, ")
    assert not (tmp_path / "proof").exists()


def test_what_the_system_refuses_travels_with_its_number(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    torch.save(torch.nn.Linear(3, 2).state_dict(), tmp_path / "c" / "w.pth")
    asked = torch_job(tmp_path / "c", tmp_path / "m", "helpers.networks:linear")
    (tmp_path / "m" / "model.safetensors").touch()
    code, answer, _ = work(asked)
    assert (code, answer) == (0, {"error": "OSError", "message": "File exists", "errno": "17"})


def test_a_factory_that_leaves_the_process_gives_no_answer(tmp_path: Path) -> None:
    (tmp_path / "c").mkdir()
    torch.save({}, tmp_path / "c" / "w.pth")
    code, answer, _ = work(torch_job(tmp_path / "c", tmp_path / "m", "helpers.networks:leaving"))
    assert (code, answer) == (0, {})
    assert not (tmp_path / "m" / "manifest.json").exists()
