"""A loaded model is called once with what its manifest declares; what it must not call it does not, and says why."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import prebake
from helpers import warmups
from helpers.baking import job, save, tiny
from helpers.runtime_fakes import bake_module, change_manifest
from prebake.baked.manifest import Loading
from prebake.baked.warmup import Inputs, Numbers, Value, Warmup, Zeros
from prebake.errors import ConfigError, LoadError, PrebakeError
from prebake.tiers.loader import LoadedModel


@pytest.fixture(autouse=True)
def _nothing_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(warmups, "CALLS", [])


def caching(root: Path, warmup: Warmup | None, **options: Any) -> tuple[LoadedModel, warmups.Caching]:
    """The model `m`, whose network keeps what it is called with."""
    folder, _ = bake_module(root, "m", "helpers.warmups:caching", loading=Loading(warmup=warmup))
    loaded = prebake.load(folder, **options)
    assert isinstance(loaded.model, warmups.Caching)
    return loaded, loaded.model


def refused(loaded: LoadedModel, kind: type[PrebakeError]) -> str:
    with pytest.raises(kind) as error:
        loaded.warm_up()
    assert type(error.value) is kind
    return str(error.value)


# --- inputs as data ----------------------------------------------------------------------------------------------


def test_a_model_that_declares_nothing_is_not_called(tmp_path: Path) -> None:
    loaded, module = caching(tmp_path, None)
    assert not loaded.warm_up()
    assert module.called == []


@pytest.mark.parametrize("method", ["forward", "generate"])
def test_inputs_become_tensors_of_their_types(tmp_path: Path, method: str) -> None:
    values: dict[str, Value] = {
        "ids": Numbers(values=((1, 2), (3, 4)), dtype="int64"),
        "scores": Numbers(values=(1, 0.5), dtype="float32"),
        "mask": Numbers(values=(True, False), dtype="bool"),
        "picture": Zeros(shape=(1, 2), dtype="bfloat16"),
        "one": Zeros(shape=()),
        "max_new_tokens": 1,
    }
    loaded, module = caching(tmp_path, Inputs(method=method, values=values))
    assert loaded.warm_up()
    ((called, found),) = module.called
    expected = {
        "ids": torch.tensor([[1, 2], [3, 4]]),
        "scores": torch.tensor([1.0, 0.5]),
        "mask": torch.tensor([True, False]),
        "picture": torch.zeros(1, 2, dtype=torch.bfloat16),
        "one": torch.tensor(0.0),
    }
    assert (called, found.pop("max_new_tokens"), found.keys()) == (method, 1, expected.keys())
    for name, tensor in expected.items():
        assert (found[name].dtype, found[name].tolist()) == (tensor.dtype, tensor.tolist()), name


def test_what_the_module_keeps_of_its_first_call_can_be_changed_by_later_ones(tmp_path: Path) -> None:
    """Under `inference_mode` it could not, outside that mode."""
    loaded, module = caching(tmp_path, Inputs(values={}))
    assert loaded.warm_up()
    with torch.no_grad():
        assert not module().requires_grad
    with torch.inference_mode():
        module()
    assert module().requires_grad
    assert module.sum is not None
    assert module.sum.tolist() == [[4.0, 4.0, 4.0]]


def test_inputs_go_where_the_model_is(tmp_path: Path) -> None:
    loaded, module = caching(
        tmp_path, Inputs(values={"x": Zeros(shape=(1,)), "y": Numbers(values=(1,), dtype="int64")})
    )
    module.to("meta")
    module.sum = torch.zeros(1, 3, device="meta")
    assert loaded.warm_up()
    ((_, found),) = module.called
    assert {tensor.device.type for tensor in found.values()} == {"meta"}


def test_a_call_that_fails_is_an_error_with_its_cause(tmp_path: Path) -> None:
    folder, _ = bake_module(
        tmp_path, "m", "helpers.runtime_fakes:plain",
        loading=Loading(warmup=Inputs(values={"input": Zeros(shape=(2, 5))})),
    )  # fmt: skip
    loaded = prebake.load(folder)
    assert refused(loaded, LoadError) == (
        "m: its warm-up failed: RuntimeError: mat1 and mat2 shapes cannot be multiplied (2x5 and 4x4)"
    )
    change_manifest(folder, loading={"warmup": {"method": "generate", "inputs": {}}})
    assert refused(prebake.load(folder), LoadError) == (
        "m: its warm-up failed: AttributeError: 'Sequential' object has no attribute 'generate'"
    )


def test_real_weights_are_warmed_with_words(real_models: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(real_models / "sentences", tmp_path / "sentences")
    words = {"input_ids": [[101, 2023, 102]], "attention_mask": [[1, 1, 1]], "return_dict": True}
    change_manifest(folder, loading={"warmup": {"inputs": words}})
    loaded = prebake.load(folder)
    expected = loaded.model(input_ids=torch.tensor([[101, 2023, 102]])).last_hidden_state
    found: list[torch.Tensor] = []
    hook = loaded.model.register_forward_hook(lambda module, arguments, output: found.append(output.last_hidden_state))
    assert loaded.warm_up()
    hook.remove()
    assert torch.equal(found[0], expected)
    assert not found[0].requires_grad


def test_a_language_model_generates_one_token(tmp_path: Path) -> None:
    from prebake_build.baking.worker import run

    warmup = {"method": "generate", "inputs": {"input_ids": [[1, 2, 3]], "attention_mask": [[1, 1, 1]],
                                               "max_new_tokens": 1, "do_sample": False}}  # fmt: skip
    loading = {"retries": 0, "timeout": None, "required": True, "warmup": warmup}
    run(job(save(tiny("GPT2LMHeadModel"), tmp_path / "checkpoint", "safetensors"), tmp_path / "gpt", loading=loading))
    loaded = prebake.load(tmp_path / "gpt")
    lengths: list[int] = []
    loaded.model.register_forward_hook(lambda module, arguments, output: lengths.append(output.logits.shape[1]))
    assert loaded.warm_up()
    assert len(lengths) == 1


# --- functions ---------------------------------------------------------------------------------------------------


def test_a_function_gets_the_loaded_model_and_no_gradients(tmp_path: Path) -> None:
    loaded, module = caching(tmp_path, "helpers.warmups:note")
    assert loaded.warm_up()
    ((given, gradients),) = warmups.CALLS
    assert given is loaded
    assert (gradients, torch.is_grad_enabled(), module.called) == (False, True, [])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("failing", "m: its warm-up failed: RuntimeError: no picture at hand"),
        ("leaving", "m: its warm-up failed: SystemExit: 3"),
    ],
)
def test_a_function_that_fails_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    assert refused(caching(tmp_path, f"helpers.warmups:{name}")[0], LoadError) == message


def test_a_function_that_the_application_does_not_allow_is_not_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.py").write_text("raise AssertionError('imported')\n")
    monkeypatch.syspath_prepend(tmp_path)
    loaded, _ = caching(tmp_path / "models", "planted:warm")
    assert refused(loaded, ConfigError) == (
        f'{tmp_path}/models/m: loading.warmup: "planted:warm" is code that the application does not allow (allowed: '
        "helpers): a manifest alone must not decide what is imported. If you trust it, allow its module: "
        'PREBAKE_ALLOW=planted, --allow planted, or allow=["planted"] for prebake.Models and prebake.load'
    )
    assert "planted" not in sys.modules


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("from os import system as warm",
         "warming:warm is a builtin_function_or_method: expected a function written in Python"),
        ("from torch import hub as warm", "warming:warm is a module: expected a function written in Python"),
        ("class warm: ...", "warming:warm is a type: expected a function written in Python"),
        ("from torch.hub import load as warm", "warming:warm is defined in torch.hub, which is not allowed (allowed: "
                                               "warming, helpers): write a function in warming that calls it"),
        ("", "cannot import warming:warm: module 'warming' has no attribute 'warm'"),
    ],
)  # fmt: skip
def test_what_is_no_function_of_an_allowed_module_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, message: str
) -> None:
    (tmp_path / "warming.py").write_text(text + "\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "warming", raising=False)
    loaded, _ = caching(tmp_path / "models", "warming:warm", allow=["warming"])
    assert refused(loaded, ConfigError) == f"{tmp_path}/models/m: loading.warmup: {message}"


def test_an_argument_allows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREBAKE_ALLOW")
    loaded, _ = caching(tmp_path, "helpers.warmups:note", allow=["helpers.warmups"])
    assert loaded.warm_up()
