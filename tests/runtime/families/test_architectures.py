"""Any architecture that transformers can load is baked and comes up mapped, as `from_pretrained` has it, bit by bit."""

from __future__ import annotations

import json
import logging
import shutil
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers import unusual_networks
from helpers.architecture_checks import check, held_differences, in_memory, name_of
from helpers.baking import job, save, torch_job
from helpers.known_architectures import ARCHITECTURES
from helpers.runtime_fakes import bake_module, python_says
from helpers.tiny_models import Architecture, inputs_of, tiny_model
from prebake import load
from prebake.baked.manifest import Manifest
from prebake_build.baking.prove import difference_of
from prebake_build.baking.worker import run

pytestmark = pytest.mark.filterwarnings("ignore")  # the library warns of much, and of other things in each version


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    import transformers

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # for models of this size others only wait
    yield
    torch.set_num_threads(threads)
    transformers.logging.enable_progress_bar()
    transformers.logging.set_verbosity_warning()


def test_the_table_covers_every_group_and_names_none_twice() -> None:
    groups = Counter(architecture.group for architecture in ARCHITECTURES)
    assert sum(groups.values()) >= 60
    assert min(groups[group] for group in (
        "encoder", "decoder", "encoder-decoder", "mixture of experts", "state space", "vision", "audio", "multimodal",
    )) >= 6  # fmt: skip
    assert {"float16", "bfloat16"} <= {architecture.dtype for architecture in ARCHITECTURES}
    assert len({name_of(architecture) for architecture in ARCHITECTURES}) == len(ARCHITECTURES)


@pytest.mark.parametrize(
    ("number", "architecture"),
    [*enumerate(ARCHITECTURES)],
    ids=[name_of(architecture) for architecture in ARCHITECTURES],
)
def test_is_mapped_and_equal(number: int, architecture: Architecture, tmp_path: Path) -> None:
    _needs(architecture)
    outcome = check(architecture, number, tmp_path)
    shutil.rmtree(tmp_path)
    assert (outcome.tier, outcome.reason, outcome.differences) == ("mapped", None, [])
    assert outcome.outputs


def _needs(architecture: Architecture) -> None:
    import transformers

    if not hasattr(transformers, architecture.class_):
        pytest.skip(f"transformers {transformers.__version__} has no {architecture.class_}")
    if int(transformers.__version__.partition(".")[0]) < architecture.since:
        pytest.skip(f"transformers {transformers.__version__} does not load what it saved of {architecture.class_}")


# --- imports put off ---------------------------------------------------------------------------------------------

DEFERRED = (
    "BertForMaskedLM", "MixtralForCausalLM", "MambaForCausalLM", "T5ForConditionalGeneration", "DetrForObjectDetection",
    "WhisperForConditionalGeneration", "Wav2Vec2ForCTC", "LlavaForConditionalGeneration", "ViTForImageClassification",
)  # fmt: skip

PROGRAM = """
import sys, warnings
from pathlib import Path
warnings.simplefilter("ignore")
from prebake.startup import deferred
deferred.defer()
from prebake import load
import torch
torch.set_num_threads(1)
equal = {}
for folder in sorted(Path(sys.argv[1]).iterdir()):
    loaded = load(folder / "model", tiers=("mapped",))
    known = torch.load(folder / "known.pt")
    with torch.inference_mode():
        found = loaded.model(**known["inputs"])[0]
    equal[folder.name] = torch.equal(found, known["output"])
    if "processor" in loaded.parts:
        from PIL import Image
        image = Image.new("RGB", (40, 24), (250, 120, 3))
        pixels = loaded.processor(image, return_tensors="pt")["pixel_values"]
        equal["processor"] = torch.equal(pixels, known["pixels"])
print(sorted(name for name in equal if equal[name]))
print(sorted(name for name, by in deferred.report().items() if by is None))
"""


def test_nothing_breaks_when_imports_are_put_off(tmp_path: Path) -> None:
    import transformers
    from PIL import Image

    chosen = [item for item in ARCHITECTURES if item.class_ in DEFERRED and item.dtype == "float32"]
    for architecture in chosen:
        folder = tmp_path / architecture.class_
        model = tiny_model(architecture)
        checkpoint = save(model, folder / "checkpoint", "pickle")
        known: dict[str, Any] = {"inputs": inputs_of(model, architecture)}
        if architecture.class_ == "ViTForImageClassification":
            transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(checkpoint)
            processor = transformers.AutoImageProcessor.from_pretrained(checkpoint)
            known["pixels"] = processor(Image.new("RGB", (40, 24), (250, 120, 3)), return_tensors="pt")["pixel_values"]
        run(job(checkpoint, folder / "model"))
        with torch.inference_mode():
            known["output"] = in_memory(type(model).from_pretrained(checkpoint))(**known["inputs"])[0]
        torch.save(known, folder / "known.pt")
    equal, deferred = python_says(PROGRAM, tmp_path, PREBAKE_DEFER="1").splitlines()[-2:]
    assert eval(equal) == sorted([*DEFERRED, "processor"])
    assert eval(deferred), "nothing was put off"


# --- networks of users' own --------------------------------------------------------------------------------------


@pytest.mark.parametrize("network", unusual_networks.NETWORKS, ids=lambda network: network.__name__)
def test_unusual_networks_are_mapped_too(network: Any, tmp_path: Path) -> None:
    torch.manual_seed(3)
    folder, module = bake_module(tmp_path, "model", f"helpers.unusual_networks:{network.__name__}")
    before = torch.random.get_rng_state()
    loaded = load(folder)
    assert (loaded.tier, loaded.fallback_reason) == ("mapped", None)
    assert torch.equal(torch.random.get_rng_state(), before)
    assert held_differences(module, loaded.model) == []
    with torch.inference_mode():
        assert difference_of(module(), loaded.model()) is None


def test_what_is_kept_has_a_key(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.unusual_networks:Keeps")
    loaded: Any = load(folder, tiers=("mapped",)).model
    assert loaded.same[0] is loaded.layer.weight
    assert isinstance(loaded.pair, unusual_networks._Pair)
    assert isinstance(loaded.hidden[0].weight, torch.nn.Parameter)
    assert Manifest.read(folder).weights.aliases == {"same.0": "layer.weight"}
    assert {"listed.1.0", "named.7", "fixed.2", "pair.0", "helper.nested.deep.0", "hidden.1.running_var"} <= (
        _hidden_names(folder)
    )


def _hidden_names(folder: Path) -> set[str]:
    from prebake.baked.header import read_header

    return set(read_header(folder / "buffers.safetensors").entries)


def test_extra_state_that_is_no_tensor_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prebake.errors import SourceError

    monkeypatch.setattr(unusual_networks.Extra, "get_extra_state", lambda self: {"steps": self.steps})
    with pytest.raises(
        SourceError, match=r"^test: _extra_state is extra state that is not a tensor, which safetensors cannot hold$"
    ):
        bake_module(tmp_path, "model", "helpers.unusual_networks:Extra")


def test_what_cannot_be_mapped_is_baked_and_falls_back_and_says_why(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    torch.manual_seed(3)
    module = unusual_networks.Unnamed().eval()
    (tmp_path / "checkpoint").mkdir()
    torch.save(module.state_dict(), tmp_path / "checkpoint" / "weights.pth")
    run(torch_job(tmp_path / "checkpoint", tmp_path / "unnamed", "helpers.unusual_networks:Unnamed"))
    why = "a tensor in a set has no name that stays the same in the next process"
    assert "unnamed: every start will fall back to the ordinary load: " in capsys.readouterr().err
    loaded = load(tmp_path / "unnamed")
    assert (loaded.tier, loaded.fallback_reason) == ("ordinary", f"mapped: {why}")
    with torch.inference_mode():
        assert difference_of(module(), loaded.model()) is None


def test_a_constructor_that_needs_values_says_so_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.unusual_networks:Looks")
    with caplog.at_level(logging.INFO, "prebake.modules.skeleton"):
        load(folder)
    assert "built with values, because its constructor fails without: RuntimeError: " in caplog.text


# --- what a module knows beside tensors --------------------------------------------------------------------------


def test_frozen_parameters_stay_frozen_and_others_do_not(tmp_path: Path) -> None:
    import transformers

    architecture = next(item for item in ARCHITECTURES if item.class_ == "PegasusForConditionalGeneration")
    checkpoint = save(tiny_model(architecture), tmp_path / "checkpoint", "safetensors")
    run(job(checkpoint, tmp_path / "model"))
    mapped = load(tmp_path / "model", tiers=("mapped",)).model
    ordinary = transformers.PegasusForConditionalGeneration.from_pretrained(checkpoint)
    assert {name for name, parameter in mapped.named_parameters() if parameter.requires_grad} == {
        name for name, parameter in ordinary.named_parameters() if parameter.requires_grad
    }


def test_every_mapped_tensor_starts_where_the_allocator_would_put_it(tmp_path: Path) -> None:
    """Kernels sum in another order where it does not: MobileNetV1 and SAM 3 then differ in their last bits."""
    architecture = next(item for item in ARCHITECTURES if item.class_ == "MobileNetV1ForImageClassification")
    run(job(save(tiny_model(architecture), tmp_path / "checkpoint", "pickle"), tmp_path / "model"))
    with warnings.catch_warnings():
        model = load(tmp_path / "model", tiers=("mapped",)).model
    assert {parameter.data_ptr() % 64 for parameter in model.parameters()} == {0}


def test_the_configuration_of_a_dequantized_checkpoint_declares_no_quantization(tmp_path: Path) -> None:
    from prebake_build.families.transformers import config_text

    (tmp_path / "config.json").write_text('{"quantization_config": {"quant_method": "fp8"}, "model_type": "llama"}')
    text = config_text(tmp_path / "config.json", None, dequantized=True)
    assert text is not None
    assert json.loads(text) == {"model_type": "llama"}
    assert config_text(tmp_path / "config.json", None, dequantized=False) is None
