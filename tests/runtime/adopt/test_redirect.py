"""Which of several baked models serves a load."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from helpers.adopted import bake_from_hub
from helpers.baking import save, tiny
from prebake.adopt import loads
from prebake.families.compat import torchvision_operators

torchvision_operators()

pytestmark = [pytest.mark.usefixtures("hooked"), pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_of_two_dtypes_the_one_that_was_asked_for_is_mapped(
    tmp_path: Path, use: Callable[[Path], None], dtype: str
) -> None:
    import torch
    from transformers import BertForMaskedLM

    checkpoint = save(tiny("BertForMaskedLM"), tmp_path / "checkpoint", "safetensors")
    for name in ("float16", "float32"):
        bake_from_hub(checkpoint, tmp_path / "models" / name, "acme/net", dtype=name)
    use(tmp_path / "models")
    model = BertForMaskedLM.from_pretrained("acme/net", dtype=getattr(torch, dtype))
    assert str(model.dtype) == f"torch.{dtype}"
    assert [(load.outcome, load.model, load.reason) for load in loads.loads] == [("mapped", dtype, None)]
