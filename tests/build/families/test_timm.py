"""Models of timm: from a folder as the hub has it, and from one file of weights; outputs are equal bit for bit."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.baking import job, load_by, recipe, refused
from helpers.runtime_fakes import change_manifest
from prebake import load
from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError, DocumentError, SourceError
from prebake.families.compat import torchvision_operators
from prebake.families.timm import TimmFamily
from prebake.modules.structure import may_import
from prebake_build.baking.worker import run

ARCHITECTURE = "test_resnet"
"""timm's own model for tests, 0.5 M parameters."""


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`config.json` and `model.safetensors`, as in the repositories `timm/…`."""
    torchvision_operators()
    import timm
    from timm.models._hub import save_config_for_hf

    folder = tmp_path_factory.mktemp("timm") / "checkpoint"
    folder.mkdir()
    torch.manual_seed(5)
    model = timm.create_model(ARCHITECTURE)
    for name, buffer in model.named_buffers():
        if "running" in name:
            buffer.uniform_(0.5, 1.5)
    save_config_for_hf(model, str(folder / "config.json"))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture
def bare(checkpoint: Path, tmp_path: Path) -> Path:
    """The same weights as one pickle, without a configuration."""
    import timm

    (tmp_path / "bare").mkdir()
    model = timm.create_model(f"local-dir:{checkpoint}", pretrained=True)
    torch.save(model.state_dict(), tmp_path / "bare" / "weights.pth")
    return tmp_path / "bare"


def answer(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module.eval()(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
    return result


def baked(checkpoint: Path, folder: Path, class_: str | None = ARCHITECTURE, **changes: Any) -> Path:
    options = {"arguments": changes.pop("arguments", {})}
    run(job(checkpoint, folder, family="timm", class_=class_, options=options, **changes))
    return folder


def test_a_repository_of_the_hub_is_mapped_and_answers_the_same(checkpoint: Path, tmp_path: Path) -> None:
    import timm

    folder = baked(checkpoint, tmp_path / "net", class_=None)
    model, how = load_by(folder)
    expected = timm.create_model(f"local-dir:{checkpoint}", pretrained=True)
    assert (type(model), model.training, how) == (type(expected), False, "structure")
    assert torch.equal(answer(model), answer(expected))
    assert model.pretrained_cfg["mean"] == expected.pretrained_cfg["mean"]
    assert (Manifest.read(folder).class_, set(Manifest.read(folder).requires)) == (ARCHITECTURE, {"torch", "timm"})


@pytest.mark.parametrize("tier", ["read", "ordinary"])
def test_the_other_tiers_answer_the_same(checkpoint: Path, tmp_path: Path, tier: Any) -> None:
    folder = baked(checkpoint, tmp_path / "net")
    assert torch.equal(answer(load(folder, (tier,)).model), answer(load(folder, ("mapped",)).model))


def test_one_file_of_weights_and_arguments(bare: Path, tmp_path: Path) -> None:
    import timm

    arguments = {"num_classes": 0, "global_pool": "max"}
    folder = baked(bare, tmp_path / "net", arguments=arguments)
    expected = timm.create_model(
        ARCHITECTURE, pretrained=True, pretrained_cfg_overlay={"file": str(bare / "weights.pth")}, **arguments
    )
    found = load(folder, ("mapped",)).model
    assert torch.equal(answer(found), answer(expected))
    assert Manifest.read(folder).options == {"arguments": arguments}


def test_a_dtype_is_that_of_the_weights(checkpoint: Path, tmp_path: Path) -> None:
    import timm

    folder = baked(checkpoint, tmp_path / "net", dtype="bfloat16")
    expected = timm.create_model(f"local-dir:{checkpoint}", pretrained=True).to(torch.bfloat16).state_dict()
    for tier in ("mapped", "ordinary"):
        found = load(folder, (tier,)).model.state_dict()
        assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_arguments_that_leave_random_values_are_refused(checkpoint: Path) -> None:
    wanted = recipe("timm", class_=ARCHITECTURE, options={"arguments": {"num_classes": 7}})
    assert refused(ConfigError, wanted, checkpoint) == (
        f'models.m.arguments: with these, {ARCHITECTURE} has random values in "fc.bias", "fc.weight", which the '
        "checkpoint lacks"
    )


def test_an_architecture_that_timm_does_not_have_is_named_with_the_nearest(bare: Path) -> None:
    import timm

    assert refused(ConfigError, recipe("timm", class_="resnet19"), bare).startswith(
        f'models.m.class: timm {timm.__version__} has no model "resnet19": did you mean "resnet'
    )


def test_a_class_that_the_configuration_contradicts_is_refused(checkpoint: Path) -> None:
    assert refused(ConfigError, recipe("timm", class_="resnet18"), checkpoint) == (
        f'models.m.class: "resnet18" is declared, but config.json has "{ARCHITECTURE}"'
    )


def test_weights_without_configuration_and_class_are_refused(bare: Path) -> None:
    assert refused(ConfigError, recipe("timm"), bare) == (
        'models.m.class: the checkpoint has no config.json of timm: add class = "timm:ARCHITECTURE"'
    )


def test_a_configuration_of_another_library_is_refused(bare: Path) -> None:
    (bare / "config.json").write_text('{"model_type": "bert"}')
    assert refused(SourceError, recipe("timm"), bare) == (
        "models.m: config.json is not the configuration of a model of timm: KeyError('architecture')"
    )


def test_a_manifest_names_no_weights(checkpoint: Path, tmp_path: Path) -> None:
    folder = baked(checkpoint, tmp_path / "net")
    change_manifest(folder, options={"arguments": {"checkpoint_path": "/etc/passwd"}})
    with pytest.raises(DocumentError) as error:
        load(folder)
    assert str(error.value) == (
        f"{folder}: options.arguments.checkpoint_path: names weights, which the folder has itself"
    )


def test_a_configuration_in_the_folder_names_no_code(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    config = json.loads((tmp_path / "c" / "config.json").read_text())
    (tmp_path / "c" / "config.json").write_text(json.dumps(config | {"architecture": "os:system"}))
    assert refused(SourceError, recipe("timm"), tmp_path / "c") == (
        "models.m: config.json: architecture is not a name of timm"
    )


def test_a_structure_may_import_modules_of_timm_and_no_programs() -> None:
    family = TimmFamily()
    for module, allowed in {
        "timm.layers.norm": True, "timm.models._efficientnet_blocks": True, "timm.models.resnet": True,
        "timm.models.__main__": False, "timm.layers.__init__": False, "timm.utils.model": False, "timm": False,
    }.items():  # fmt: skip
        assert may_import(module, family) is allowed, module
