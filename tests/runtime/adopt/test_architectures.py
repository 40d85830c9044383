"""Many architectures: the mapped object has the attributes of the one that the library returns for the same name."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.adopted import bake_from_hub
from helpers.baking import save
from helpers.known_architectures import ARCHITECTURES
from helpers.tiny_models import Architecture, inputs_of, tiny_model
from prebake.adopt import loads
from runtime.adopt.test_transformers import assert_same, ordinary

NAMES = (
    "LlamaForCausalLM", "MixtralForCausalLM", "T5ForConditionalGeneration", "BartForConditionalGeneration",
    "WhisperForConditionalGeneration", "Wav2Vec2ForCTC", "ViTForImageClassification", "CLIPModel",
    "BlipForConditionalGeneration", "LlavaForConditionalGeneration", "MambaForCausalLM",
)  # fmt: skip

pytestmark = [pytest.mark.usefixtures("hooked"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize(
    "architecture",
    [item for item in ARCHITECTURES if item.class_ in NAMES],
    ids=lambda item: f"{item.class_}-{item.dtype}",
)
def test_the_object_is_the_library_s(architecture: Architecture, tmp_path: Path, use: Callable[[Path], None]) -> None:
    import transformers

    if not hasattr(transformers, architecture.class_):
        pytest.skip(f"transformers {transformers.__version__} has no {architecture.class_}")
    cls: Any = getattr(transformers, architecture.class_)
    model = tiny_model(architecture).to(getattr(torch, architecture.dtype))
    model.config.dtype = getattr(torch, architecture.dtype)
    checkpoint = save(model, tmp_path / "checkpoint", architecture.form or "safetensors")
    bake_from_hub(checkpoint, tmp_path / "models" / "model", "acme/model")
    use(tmp_path / "models")
    mapped = cls.from_pretrained("acme/model", dtype="auto")
    assert [(load.outcome, load.reason) for load in loads.loads] == [("mapped", None)]
    plain = ordinary(cls, "acme/model", dtype="auto")
    assert_same(mapped, plain)
    with torch.inference_mode():
        one, other = (loaded(**inputs_of(loaded, architecture))[0] for loaded in (mapped, plain))
    assert torch.equal(one, other)
    shutil.rmtree(tmp_path)
