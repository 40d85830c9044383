"""A tiny Stable Diffusion pipeline: random weights, real classes and the whole code of the pipeline."""

from __future__ import annotations

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch

from prebake.families.compat import torchvision_operators


def skip_without_diffusers() -> None:
    """Skips the test where transformers 4 is tested."""
    if version("huggingface_hub") < "1":
        pytest.skip("diffusers needs huggingface_hub 1 or newer, and transformers 4 an older one")


def save_pipeline(folder: Path, *, checker: bool = True) -> Path:
    """The pipeline as its authors publish it; `checker` adds the safety checker, a transformers model of diffusers."""
    skip_without_diffusers()
    torchvision_operators()
    from diffusers import DDIMScheduler, StableDiffusionPipeline
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker
    from transformers import CLIPConfig, CLIPImageProcessor

    torch.manual_seed(11)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
    vision = {**small, "image_size": 8, "patch_size": 4, "projection_dim": 16}
    found = StableDiffusionSafetyChecker(CLIPConfig(text_config=small, vision_config=vision, projection_dim=16))
    StableDiffusionPipeline(
        **_networks(),
        tokenizer=_tokenizer(folder),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
        safety_checker=found if checker else None,
        feature_extractor=CLIPImageProcessor(size={"shortest_edge": 8}, crop_size=8) if checker else None,
        requires_safety_checker=checker,
    ).save_pretrained(folder)
    return folder


def _networks() -> dict[str, Any]:
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    unet = UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=8, norm_num_groups=2, cross_attention_dim=16,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), attention_head_dim=2,
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(4, 8), norm_num_groups=2, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    text = CLIPTextModel(CLIPTextConfig(
        hidden_size=16, intermediate_size=24, num_attention_heads=2, num_hidden_layers=2, vocab_size=600,
        bos_token_id=0, eos_token_id=2, pad_token_id=1, projection_dim=16,
    ))  # fmt: skip
    return {"unet": unet.eval(), "vae": vae.eval(), "text_encoder": text.eval()}


def _tokenizer(folder: Path) -> Any:
    from tokenizers import pre_tokenizers
    from transformers import CLIPTokenizer

    letters = sorted(set(pre_tokenizers.ByteLevel.alphabet()) - {"!"})
    tokens = ["<|startoftext|>", "!", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in (*letters, "!"))]
    folder.mkdir(parents=True)
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    vocabulary.write_text(json.dumps({token: number for number, token in enumerate(tokens)}))
    merges.write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(vocabulary), str(merges), model_max_length=77)
    vocabulary.unlink()
    merges.unlink()
    return tokenizer


def image(pipeline: Any) -> torch.Tensor:
    """What the pipeline draws from one seed: shape (1, 16, 16, 3)."""
    pipeline.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(3)
    drawn = pipeline("a cat!", num_inference_steps=2, generator=generator, output_type="np", height=16, width=16)
    return torch.from_numpy(drawn.images)
