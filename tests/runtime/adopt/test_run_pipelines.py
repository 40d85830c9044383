"""`pipeline` and the processors of transformers: all that they load by name comes from the baked models, offline."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
import transformers
from PIL import Image

from helpers.adopted import bake_from_hub
from helpers.baking import save
from prebake.adopt import loads
from prebake.adopt.catalogue import catalogue
from prebake.adopt.view import view_folder
from prebake.families.compat import torchvision_operators

torchvision_operators()

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
Use = Callable[[Path], None]

pytestmark = [pytest.mark.usefixtures("hooked"), pytest.mark.filterwarnings("ignore")]


def mapped() -> list[tuple[str, str | None]]:
    return [(load.outcome, load.model) for load in loads.loads]


def without_prebake(task: str, name: str) -> Any:
    with loads.inside():
        models = catalogue()
        view = view_folder(models, models.models[0].folder.parent)
        return transformers.pipeline(task, model=name, model_kwargs={"cache_dir": str(view)}, device="cpu")


def test_a_pipeline_of_text(minilm: Path, use: Use) -> None:
    use(minilm)
    found = transformers.pipeline("feature-extraction", model=MINILM)
    assert mapped() == [("mapped", "sentences")]
    plain = without_prebake("feature-extraction", MINILM)
    assert torch.equal(found("A cat sits.", return_tensors=True), plain("A cat sits.", return_tensors=True))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A root with `vit`, a network of acme/vit with random weights, and its processor."""
    place = tmp_path_factory.mktemp("pictures")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    torch.manual_seed(7)
    network = transformers.ViTForImageClassification(transformers.ViTConfig(image_size=32, patch_size=8, **sizes))
    checkpoint = save(network.eval(), place / "checkpoint", "safetensors")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(checkpoint)
    bake_from_hub(checkpoint, place / "models" / "vit", "acme/vit")
    return place / "models"


def test_a_pipeline_of_pictures_and_its_processor(pictures: Path, use: Use) -> None:
    use(pictures)
    found = transformers.pipeline("image-classification", model="acme/vit")
    assert mapped() == [("mapped", "vit")]
    plain = transformers.pipeline("image-classification", model=str(pictures.parent / "checkpoint"))
    noise = numpy.random.default_rng(0).integers(0, 255, (40, 50, 3), dtype=numpy.uint8)
    assert found(Image.fromarray(noise)) == plain(Image.fromarray(noise))
    for auto in ("AutoProcessor", "AutoImageProcessor"):
        processor = getattr(transformers, auto).from_pretrained("acme/vit")
        assert processor.to_dict() == plain.image_processor.to_dict()
