"""`timm.create_model(…, pretrained=True)`: the mapped model is the one that the library makes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from helpers.baking import job
from helpers.hooked import Hooked, from_hub
from prebake.adopt.hooks import timm as timm_hook
from prebake.families.compat import torchvision_operators
from prebake_build.baking.worker import run

ARCHITECTURE = "test_resnet"
REPO = "timm/test_resnet.r160_in1k"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torchvision_operators()
    import timm
    from timm.models._hub import save_config_for_hf

    folder = tmp_path_factory.mktemp("timm") / "checkpoint"
    folder.mkdir()
    torch.manual_seed(5)
    model = timm.create_model(ARCHITECTURE)
    save_config_for_hf(model, str(folder / "config.json"))
    save_file(model.state_dict(), folder / "model.safetensors")
    return folder


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    run(job(checkpoint, root / "net", family="timm", class_=ARCHITECTURE, options={"arguments": {}},
            source=from_hub(REPO)))  # fmt: skip
    return root


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch, models: Path) -> Hooked:
    from timm.models import _factory

    found = Hooked(monkeypatch)
    found.install(timm_hook, _factory, [(_factory, "create_model")])
    found.serve(models)
    return found


def create(*args: Any, **kwargs: Any) -> Any:
    from timm.models import _factory

    return _factory.create_model(*args, **kwargs)


def ordinary(checkpoint: Path, **kwargs: Any) -> Any:
    overlay = {"file": str(checkpoint / "model.safetensors")}
    return create(ARCHITECTURE, pretrained=True, pretrained_cfg_overlay=overlay, **kwargs)


def answer(module: Any) -> torch.Tensor:
    with torch.inference_mode():
        result: torch.Tensor = module.eval()(torch.linspace(-1, 1, 3 * 64 * 64).reshape(1, 3, 64, 64))
    return result


@pytest.mark.parametrize("name", [ARCHITECTURE, f"{ARCHITECTURE}.r160_in1k"])
def test_a_registered_name_is_mapped(hooked: Hooked, checkpoint: Path, name: str) -> None:
    model = create(name, pretrained=True)
    assert hooked.outcome == ("mapped", "net", None)
    assert (hooked.load.uri, hooked.load.class_) == (f"hf:{REPO}", f"timm:{name}")
    expected = ordinary(checkpoint)
    assert model.training is True
    assert type(model) is type(expected)
    assert {**model.pretrained_cfg, "file": None} == {**expected.pretrained_cfg, "file": None}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(answer(model), answer(expected))


def test_without_pretrained_nothing_is_loaded(hooked: Hooked) -> None:
    create(ARCHITECTURE)
    assert hooked.loads == []


def test_other_arguments_are_served_from_the_folder(
    hooked: Hooked, checkpoint: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model = create(ARCHITECTURE, pretrained=True, num_classes=0)
    assert hooked.outcome == ("baked folder", "net", "num_classes=0, and None was baked")
    assert caplog.messages[-1] == (
        f"net: hf:{REPO} loaded by timm from the baked folder: num_classes=0, and None was baked"
    )
    assert torch.equal(answer(model), answer(ordinary(checkpoint, num_classes=0)))


def test_other_weights_are_loaded_by_timm(hooked: Hooked, checkpoint: Path) -> None:
    ordinary(checkpoint)
    assert hooked.outcome == ("original", None, "pretrained_cfg_overlay names other weights")
    assert hooked.load.uri is None


@pytest.mark.parametrize(
    ("name", "uri"),
    [
        ("hf-hub:acme/net", "hf:acme/net"),
        ("hf_hub:acme/net@v1", "hf:acme/net@v1"),
        ("local-dir:/somewhere", "path:/somewhere"),
        (ARCHITECTURE, f"hf:{REPO}"),
        ("no_such_model", None),
    ],
)
def test_where_a_name_s_weights_come_from(name: str, uri: str | None) -> None:
    torchvision_operators()
    assert timm_hook._uri(name) == uri
