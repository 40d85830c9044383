"""Pipelines of diffusers: baked with each network in its own folder, mapped, and the same image for the same seed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from helpers.baking import job, recipe, refused
from helpers.pipelines import image, save_pipeline, skip_without_diffusers
from helpers.runtime_fakes import change_manifest
from prebake import load
from prebake.baked.manifest import Manifest
from prebake.errors import ConfigError, SourceError
from prebake.families.diffusers import dtype_argument
from prebake_build.baking.worker import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_pipeline(tmp_path_factory.mktemp("diffusers") / "checkpoint")


@pytest.fixture(scope="module")
def baked(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("baked") / "draw"
    run(job(checkpoint, folder, family="diffusers", class_="StableDiffusionPipeline"))
    return folder


def ordinary(folder: Path, **options: Any) -> Any:
    """The pipeline as diffusers loads it, with tensors where torch's allocator would put them.

    diffusers computes on the file's own pages. Where a tensor in it does not start on 16 bytes, kernels sum in another
    order, and the last bits of an output differ between two files with the same tensors.
    """
    from diffusers import DiffusionPipeline

    if "dtype" in options:
        options[dtype_argument()] = options.pop("dtype")
    pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, **options)
    for part in pipeline.components.values():
        for parameter in part.parameters() if isinstance(part, torch.nn.Module) else ():
            parameter.data = parameter.data.clone()
    return pipeline


def test_the_mapped_pipeline_draws_the_same_image(checkpoint: Path, baked: Path) -> None:
    expected = image(ordinary(checkpoint))
    loaded = load(baked, ("mapped",))
    assert (type(loaded.pipeline).__name__, loaded.tier) == ("StableDiffusionPipeline", "mapped")
    assert torch.equal(image(loaded.pipeline), expected)
    assert expected.std() > 0


@pytest.mark.parametrize("tier", ["read", "ordinary"])
def test_the_other_tiers_draw_it_too(checkpoint: Path, baked: Path, tier: Any) -> None:
    assert torch.equal(image(load(baked, (tier,)).pipeline), image(ordinary(checkpoint)))


def test_the_folder_is_one_that_diffusers_reads_itself(checkpoint: Path, baked: Path) -> None:
    assert torch.equal(image(ordinary(baked)), image(ordinary(checkpoint)))


def test_each_network_has_its_file_and_every_other_file_is_kept(checkpoint: Path, baked: Path) -> None:
    manifest = Manifest.read(baked)
    assert manifest.weights.prefixes == {
        "safety_checker/model.safetensors": "safety_checker.",
        "text_encoder/model.safetensors": "text_encoder.",
        "unet/diffusion_pytorch_model.safetensors": "unet.",
        "vae/diffusion_pytorch_model.safetensors": "vae.",
    }
    assert manifest.weights.files == tuple(manifest.weights.prefixes)
    before = {path.relative_to(checkpoint).as_posix() for path in checkpoint.rglob("*") if path.is_file()}
    assert {file.path for file in manifest.files} - before == {"buffers.safetensors"}
    assert before <= {file.path for file in manifest.files}
    assert set(manifest.requires) == {"torch", "transformers", "diffusers"}


def test_components_are_what_diffusers_would_have_made(checkpoint: Path, baked: Path) -> None:
    expected, found = ordinary(checkpoint).components, load(baked, ("mapped",)).pipeline.components
    assert {name: type(part) for name, part in found.items()} == {name: type(part) for name, part in expected.items()}
    for name, part in expected.items():
        if isinstance(part, torch.nn.Module):
            assert found[name].training == part.training
            assert [p.requires_grad for p in found[name].parameters()] == [p.requires_grad for p in part.parameters()]
            assert configuration(found[name]) == configuration(part)


def configuration(part: Any) -> dict[str, Any]:
    """What the network was built from, without the folder that it came from."""
    values = part.config.to_dict() if hasattr(part.config, "to_dict") else part.config
    return {name: value for name, value in values.items() if name != "_name_or_path"}


def test_networks_are_one_model_by_their_names(baked: Path) -> None:
    loaded = load(baked, ("mapped",))
    assert sorted(name for name, _ in loaded.model.named_children()) == [
        "safety_checker", "text_encoder", "unet", "vae"
    ]  # fmt: skip
    assert loaded.pipeline.unet is loaded.model.get_submodule("unet")


def test_half_precision_and_a_component_that_is_null(tmp_path: Path) -> None:
    checkpoint = save_pipeline(tmp_path / "c", checker=False)
    folder = tmp_path / "half"
    run(job(checkpoint, folder, family="diffusers", class_="StableDiffusionPipeline", dtype="bfloat16"))
    pipeline = load(folder, ("mapped",)).pipeline
    assert pipeline.safety_checker is None
    expected = ordinary(checkpoint, dtype=torch.bfloat16).unet.state_dict()
    found = pipeline.unet.state_dict()
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in expected.items())


def test_a_variant_is_baked_under_the_usual_names(tmp_path: Path) -> None:
    checkpoint = save_pipeline(tmp_path / "c", checker=False)
    ordinary(checkpoint, dtype=torch.float16).save_pretrained(tmp_path / "both", variant="fp16")
    folder = tmp_path / "half"
    run(job(tmp_path / "both", folder, family="diffusers", options={"variant": "fp16"}))
    manifest = Manifest.read(folder)
    assert "unet/diffusion_pytorch_model.safetensors" in manifest.weights.files
    assert load(folder, ("mapped",)).pipeline.vae.dtype == torch.float32  # as diffusers loads it without a dtype
    message = refused(ConfigError, recipe("diffusers", options={"variant": "fp16"}), checkpoint)
    assert message.startswith('models.m.variant: the checkpoint has no weights of the variant "fp16" (it has ')
    assert message.endswith("): if it was locked before this key was written, run `prebake lock` again")


def test_a_pipeline_of_one_network(tmp_path: Path) -> None:
    skip_without_diffusers()
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    torch.manual_seed(2)
    unet = UNet2DModel(
        block_out_channels=(4, 8), sample_size=8, norm_num_groups=2, layers_per_block=1, attention_head_dim=2,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path / "c")
    run(job(tmp_path / "c", tmp_path / "noise", family="diffusers"))

    def drawn(pipeline: Any) -> torch.Tensor:
        pipeline.set_progress_bar_config(disable=True)
        generator = torch.Generator().manual_seed(1)
        return torch.from_numpy(pipeline(num_inference_steps=2, generator=generator, output_type="np").images)

    assert torch.equal(drawn(load(tmp_path / "noise", ("mapped",)).pipeline), drawn(ordinary(tmp_path / "c")))


# --- bad input ---------------------------------------------------------------------------------------------------


def test_a_checkpoint_without_an_index_is_no_pipeline(checkpoint: Path) -> None:
    assert refused(ConfigError, recipe("diffusers"), checkpoint / "unet") == (
        "models.m.source: not a pipeline of diffusers: it has no model_index.json"
    )


def test_a_pipeline_that_diffusers_does_not_have_is_named_with_the_nearest(checkpoint: Path) -> None:
    import diffusers

    assert refused(ConfigError, recipe("diffusers", class_="StableDifusionPipeline"), checkpoint).endswith(
        f'diffusers {diffusers.__version__} has no pipeline "StableDifusionPipeline": did you mean '
        '"StableDiffusionPipeline"?'
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"_class_name": ["mine", "Pipeline"]}, "model_index.json names a pipeline of its own, which is remote code"),
        ({"unet": ["os.path", "join"]}, 'model_index.json: "unet": expected a library and a class, or two nulls'),
        ({"../x": ["diffusers", "UNet2DModel"]},
         'model_index.json: "../x": expected a library and a class, or two nulls'),
    ],
)  # fmt: skip
def test_an_index_that_names_other_code_is_refused(
    checkpoint: Path, baked: Path, tmp_path: Path, change: dict[str, Any], message: str
) -> None:
    for folder in (checkpoint, baked):
        copied = tmp_path / folder.name
        shutil.copytree(folder, copied)
        index = copied / "model_index.json"
        index.write_text(json.dumps(json.loads(index.read_text()) | change))
    kind = ConfigError if "_class_name" in change else SourceError
    assert refused(kind, recipe("diffusers"), tmp_path / "checkpoint") == f"models.m.source: {message}"
    with pytest.raises(Exception, match=r"expected a library|remote code|differs from its manifest"):
        load(tmp_path / "draw")


def test_code_beside_weights_is_refused_before_diffusers_sees_it(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / "unet" / "diffusers.py").write_text("raise SystemExit")
    assert refused(ConfigError, recipe("diffusers"), tmp_path / "c") == (
        'models.m.source: "unet/diffusers.py" is code beside weights, which diffusers would import'
    )


def test_a_manifest_chooses_no_class_outside_of_diffusers(baked: Path, tmp_path: Path) -> None:
    shutil.copytree(baked, tmp_path / "draw")
    change_manifest(tmp_path / "draw", **{"class": "UNet2DConditionModel"})
    with pytest.raises(ConfigError, match='has no pipeline "UNet2DConditionModel"'):
        load(tmp_path / "draw")


def test_a_component_that_is_damaged_is_said(checkpoint: Path, tmp_path: Path) -> None:
    shutil.copytree(checkpoint, tmp_path / "c")
    (tmp_path / "c" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"no weights")
    assert refused(SourceError, recipe("diffusers"), tmp_path / "c").startswith(
        "models.m: StableDiffusionPipeline cannot load this checkpoint: "
    )
