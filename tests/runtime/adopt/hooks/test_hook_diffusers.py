"""`DiffusionPipeline.from_pretrained`: the library's own pipeline, with mapped networks; the same image for a seed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import job
from helpers.hooked import Hooked
from helpers.pipelines import image, save_pipeline
from prebake.adopt.hooks import diffusers as diffusers_hook
from prebake_build.baking.worker import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("diffusers") / "checkpoint", checker=False)


@pytest.fixture(scope="module")
def models(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    source = {"uri": f"path:{checkpoint}", "revision": "sha256:" + "0" * 64, "licence": None}
    run(job(checkpoint, root / "draw", family="diffusers", class_="StableDiffusionPipeline", source=source))
    return root


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch, models: Path) -> Hooked:
    from diffusers.models import modeling_utils
    from diffusers.pipelines import pipeline_utils

    found = Hooked(monkeypatch)
    found.install(diffusers_hook, pipeline_utils, [(pipeline_utils.DiffusionPipeline, "from_pretrained")])
    found.install(diffusers_hook, modeling_utils, [(modeling_utils.ModelMixin, "from_pretrained")])
    found.serve(models)
    return found


@pytest.fixture
def expected(checkpoint: Path) -> Any:
    import diffusers

    return diffusers.DiffusionPipeline.from_pretrained(checkpoint)


@pytest.mark.parametrize("class_", ["DiffusionPipeline", "StableDiffusionPipeline"])
def test_a_pipeline_is_mapped(expected: Any, hooked: Hooked, checkpoint: Path, class_: str) -> None:
    import diffusers

    pipeline = getattr(diffusers, class_).from_pretrained(str(checkpoint))
    assert hooked.outcome == ("mapped", "draw", None)
    assert hooked.load.function == f"{class_}.from_pretrained"
    assert type(pipeline) is type(expected)
    assert torch.equal(image(pipeline), image(expected))
    assert pipeline.config["_name_or_path"] == str(checkpoint)
    assert {key: value for key, value in pipeline.config.items() if key != "_name_or_path"} == {
        key: value for key, value in expected.config.items() if key != "_name_or_path"
    }
    for name, part in expected.components.items():
        found = pipeline.components[name]
        assert type(found) is type(part), name
        if isinstance(part, torch.nn.Module):
            assert (found.training, found.dtype) == (part.training, part.dtype), name
            assert [p.requires_grad for p in found.parameters()] == [p.requires_grad for p in part.parameters()], name


def test_another_pipeline_takes_the_same_networks(hooked: Hooked, checkpoint: Path) -> None:
    import diffusers

    pipeline = diffusers.StableDiffusionImg2ImgPipeline.from_pretrained(checkpoint)
    assert hooked.outcome == ("mapped", "draw", None)
    assert type(pipeline) is diffusers.StableDiffusionImg2ImgPipeline
    assert type(pipeline.unet) is diffusers.UNet2DConditionModel


def test_a_component_of_the_user_s_own_stays(expected: Any, hooked: Hooked, checkpoint: Path) -> None:
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(checkpoint, vae=expected.vae)
    assert hooked.outcome == ("mapped", "draw", None)
    assert pipeline.vae is expected.vae


def test_a_single_network_is_taken_out_of_its_pipeline(expected: Any, hooked: Hooked, checkpoint: Path) -> None:
    import diffusers

    vae = diffusers.AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    assert hooked.outcome == ("mapped", "draw", None)
    state = vae.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in expected.vae.state_dict().items())


@pytest.mark.parametrize("named", ["dtype", "torch_dtype"])
@pytest.mark.filterwarnings("ignore:.*torch_dtype.*:FutureWarning")
def test_another_dtype_is_loaded_from_the_baked_folder(hooked: Hooked, checkpoint: Path, named: str) -> None:
    import diffusers

    pipeline = diffusers.DiffusionPipeline.from_pretrained(checkpoint, **{named: torch.float16})
    outcome, model, reason = hooked.outcome
    assert (outcome, model) == ("baked folder", "draw")
    assert reason is not None
    assert reason.startswith("dtype float16 of ")
    assert reason.endswith(", and float32 was baked")
    assert pipeline.unet.dtype is torch.float16


def test_observed_a_pipeline_is_one_load(hooked: Hooked, checkpoint: Path, tmp_path: Path) -> None:
    import diffusers

    hooked.observe(tmp_path / "seen")
    diffusers.DiffusionPipeline.from_pretrained(checkpoint)
    assert (hooked.load.class_, hooked.load.dtype) == ("diffusers:StableDiffusionPipeline", "float32")
    assert (hooked.load.uri, hooked.load.obstacle) == (f"path:{checkpoint}", None)


def test_observed_a_network_of_its_own_cannot_be_baked(hooked: Hooked, checkpoint: Path, tmp_path: Path) -> None:
    import diffusers

    hooked.observe(tmp_path / "seen")
    diffusers.AutoencoderKL.from_pretrained(checkpoint, subfolder="vae")
    assert hooked.load.obstacle == "a single network of diffusers: bake the pipeline that it is part of"
    assert hooked.load.detail == {"subfolder": "vae"}
