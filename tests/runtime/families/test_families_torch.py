"""The torch family: any importable factory, with everything that loading may forget."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from helpers.runtime_fakes import bake_module
from prebake import load
from prebake.errors import ConfigError
from prebake.families.allowed import find_factory
from prebake.families.family import family_of
from prebake.families.torch_module import build
from prebake.tiers.loader import TIERS

WORDS = torch.tensor([[1, 2, 3], [4, 5, 6]])


@pytest.mark.parametrize("factory", ["helpers.runtime_fakes:odd", "helpers.networks:tagger"])
def test_every_tier_answers_bit_for_bit_as_what_was_baked(tmp_path: Path, factory: str) -> None:
    folder, module = bake_module(tmp_path, "model", factory)
    with torch.inference_mode():
        expected = module(WORDS)
        for tier in TIERS:
            loaded = load(folder, [tier])
            assert loaded.tier == tier
            assert torch.equal(loaded.model(WORDS), expected), tier


def test_the_ordinary_tier_ties_what_was_tied(tmp_path: Path) -> None:
    folder, _ = bake_module(tmp_path, "model", "helpers.runtime_fakes:odd")
    model = load(folder, ["ordinary"]).model
    assert model.get_parameter("out.weight") is model.get_parameter("embedding.weight")


def test_a_factory_is_found_or_refused_with_its_place() -> None:
    assert find_factory("torch.nn:Linear", ["torch.nn"], "where") is torch.nn.Linear
    for name in ("torch.nn:Absent", "absent.package:x", "torch.nn"):
        with pytest.raises(ConfigError, match=rf"^where: cannot import {name}: "):
            find_factory(name, ["torch.nn", "absent"], "where")


def test_what_a_factory_raises_is_its_own(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'nonsense'"):
        build("helpers.runtime_fakes:plain", {"nonsense": 1}, "where", ["helpers.runtime_fakes"])


def test_families_have_one_dispatch() -> None:
    assert [type(family_of(name, "where")).__name__ for name in ("transformers", "easyocr", "torch")] == [
        "TransformersFamily", "EasyOcrFamily", "TorchFamily",
    ]  # fmt: skip
