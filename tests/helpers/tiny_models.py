"""Any architecture of transformers, made tiny: its own configuration class with small sizes, random weights, inputs.

Sizes are found by name: whatever a configuration calls `hidden_size`, `d_model` or `n_embd` becomes 32, in its
parts too. What an architecture needs beyond that stands with it, in `known_architectures.py`.
"""

from __future__ import annotations

import inspect
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

VOCABULARY = 128
SPECIAL = 28
"""The last ids of the vocabulary are for special tokens; random text has none of them."""
IMAGE = 32

_SIZES: tuple[tuple[str, int], ...] = (
    (r"(text_|vision_|image_)?vocab_size|num_embeddings|codebook_size", VOCABULARY),
    (r"(.*_)?(hidden_size|embed_dim|d_model|embedding_size|projection_dim|emb_dim|embedding_dim|n_embd|proj_size)"
     r"|dim|hidden_dim|output_dim|word_embed_proj_dim|output_hidden_size|hidden_channels|spectrogram_bins", 32),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|inner_dim|ffn_hidden_size|feedforward_dim)|n_inner", 64),
    (r"num_feat_extract_layers|num_adapter_layers", 16),
    (r"(num_|n_)?(.*_)?layers?|(.*_)?depth|num_hidden_groups", 2),
    (r"(.*_)?head_dim|d_head|d_kv|rotary_dim|dim_head", 8),
    (r"(.*_)?num_(key_value|kv)_heads", 2),
    (r"(num_|n_)?(.*_)?(attention_|attn_)?(heads?|n_heads)", 4),
    (r"(.*_)?image_size|input_size", IMAGE),
    (r"patch_size", 8),
    (r"(.*_)?max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|max_seq_len", 64),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_k|top_k_experts", 2),
    (r"n_group|topk_group|first_k_dense_replace", 1),
    (r"(.*_)?lora_rank|num_queries|num_query_tokens|.*n_latents|num_image_tokens", 8),
    (r"sliding_window|attention_window|chunk_size|local_attention", 8),
)  # fmt: skip
"""A name's pattern and its tiny value, which holds where the default is larger."""
_LISTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"depths|layers|num_conv_layers", (1, 1, 1, 1, 1)),
    (r"(.*_)?hidden_sizes|embed_dims?|embedding_dims", (8, 16, 24, 32, 40, 48, 56, 64)),
    (r"num_attention_heads|num_heads", (1, 2, 2, 4, 4)),
    (r"conv_dim", (32,) * 16),
)
"""The same for lists, which keep their lengths."""
_TOKENS = {"pad": 0, "bos": 1, "decoder_start": 1, "eos": 2, "sep": 3, "cls": 4}

Inputs = Callable[[Any, torch.Generator], dict[str, Any]]
"""Inputs of a forward pass, from the configuration and a source of randomness."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One architecture, as the table names it."""

    class_: str
    """A class of transformers."""
    group: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its configuration class beyond the tiny sizes; those of its parts as mappings."""
    inputs: tuple[str, ...] | Inputs = ()
    """Names of inputs, where others are needed than the main one; or what makes them."""
    generates: bool = True
    """Whether to generate tokens too, where it can."""
    dtype: str = "float32"
    form: str | None = None
    """Of the checkpoint, as `baking.save` names it; None takes the next of its forms."""
    since: int = 4
    """The first major version of transformers whose own `from_pretrained` loads what it saved."""


def tiny_config(config_class: Any, extra: Mapping[str, Any]) -> Any:
    """The configuration class with small sizes, and `extra` over them."""
    composed = any(isinstance(part, Mapping) and "model_type" in part for part in extra.values())
    default = config_class(**extra) if composed else config_class()
    return config_class(**_arguments(default, extra))


def _arguments(default: Any, extra: Mapping[str, Any]) -> dict[str, Any]:
    from transformers import PretrainedConfig

    arguments = dict(extra)
    for name in default.to_dict():
        value = getattr(default, name, None)
        if isinstance(value, PretrainedConfig):
            if isinstance(extra.get(name, {}), Mapping):
                part = {"model_type": value.model_type, **extra.get(name, {})}
                same = part["model_type"] == value.model_type
                arguments[name] = _arguments(value, part) if same else part
        elif name not in extra and (small := _small(name, value)) is not None:
            arguments[name] = small
    return arguments


def _small(name: str, value: object) -> object:
    """The tiny value, or None where the default may stay."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int):
        if re.fullmatch(r".*_(token_id|token_index|id|idx)", name):
            return _token(name) if value >= VOCABULARY - SPECIAL else None
        size = next((size for pattern, size in _SIZES if re.fullmatch(pattern, name)), value)
        return size if size < value else None
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
        sizes = next((sizes for pattern, sizes in _LISTS if re.fullmatch(pattern, name)), None)
        return sizes and list(sizes[: len(value)])
    return None


def _token(name: str) -> int:
    known = _TOKENS.get(name.removesuffix("_token_id"))
    return VOCABULARY - SPECIAL + zlib.crc32(name.encode()) % SPECIAL if known is None else known


def tiny_model(architecture: Architecture) -> Any:
    """The model with random weights, in evaluation mode; the same weights every time."""
    import transformers

    cls = getattr(transformers, architecture.class_)
    torch.manual_seed(0)
    return cls(tiny_config(cls.config_class, architecture.config)).eval()


def inputs_of(model: Any, architecture: Architecture) -> dict[str, Any]:
    """Inputs of its forward pass, numbers in the model's own type."""
    random = torch.Generator().manual_seed(1)
    chosen = architecture.inputs
    found = chosen(model.config, random) if callable(chosen) else _named(model, chosen, random)
    accepted = inspect.signature(model.forward).parameters
    return {name: value.to(model.dtype) if isinstance(value, torch.Tensor) and value.is_floating_point() else value
            for name, value in found.items() if name in accepted}  # fmt: skip


def _named(model: Any, names: tuple[str, ...], random: torch.Generator) -> dict[str, Any]:
    names = names or (model.main_input_name,)
    if model.config.is_encoder_decoder and "decoder_input_ids" in inspect.signature(model.forward).parameters:
        names += ("decoder_input_ids",)
    return {name: _MAKERS[name](model.config, random) for name in names}


def text(config: Any, random: torch.Generator, length: int = 12) -> torch.Tensor:
    return torch.randint(5, VOCABULARY - SPECIAL, (2, length), generator=random)


def pixels(config: Any, random: torch.Generator) -> torch.Tensor:
    vision = getattr(config, "vision_config", None) or getattr(config, "encoder", None) or config
    size = getattr(vision, "image_size", IMAGE) or IMAGE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(2, getattr(vision, "num_channels", 3) or 3, height, width, generator=random)


def features(config: Any, random: torch.Generator) -> torch.Tensor:
    bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80
    return torch.randn(2, bins, 2 * getattr(config, "max_source_positions", 32), generator=random)


def frames(config: Any, random: torch.Generator) -> torch.Tensor:
    """Features with time before frequency."""
    bins = (
        getattr(config, "input_feat_per_channel", None) or getattr(config, "feature_projection_input_dim", None) or 80
    )
    return torch.randn(2, 32, bins, generator=random)


def waves(config: Any, random: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 1600, generator=random)


def image_and_text(tokens: int, **extra: Any) -> Inputs:
    """Text with `tokens` places for the image's features, one image each; `extra` goes to the model too."""

    def make(config: Any, random: torch.Generator) -> dict[str, Any]:
        ids = text(config, random, 4 + tokens)
        place = getattr(config, "image_token_id", None)
        ids[:, 2 : 2 + tokens] = config.image_token_index if place is None else place
        return {"input_ids": ids, "pixel_values": pixels(config, random), **extra}

    return make


def video_patches(config: Any, random: torch.Generator) -> dict[str, Any]:
    """Qwen's way: one image of 4 x 4 patches, already cut, each two frames deep; 2 x 2 are merged into a token."""
    vision = config.vision_config
    ids = text(config, random, 8)[:1]
    ids[:, 2:6] = config.image_token_id
    width = 3 * vision.temporal_patch_size * vision.patch_size**2
    return {"input_ids": ids, "pixel_values": torch.randn(16, width, generator=random),
            "image_grid_thw": torch.tensor([[1, 4, 4]]),
            "mm_token_type_ids": (ids == config.image_token_id).int()}  # fmt: skip


def series(config: Any, random: torch.Generator) -> dict[str, Any]:
    past = config.context_length + max(config.lags_sequence)
    return {
        "past_values": torch.randn(2, past, generator=random),
        "past_time_features": torch.randn(2, past, config.num_time_features, generator=random),
        "past_observed_mask": torch.ones(2, past),
        "future_values": torch.randn(2, config.prediction_length, generator=random),
        "future_time_features": torch.randn(2, config.prediction_length, config.num_time_features, generator=random),
    }


def decisions(config: Any, random: torch.Generator) -> dict[str, Any]:
    def noise(width: int) -> torch.Tensor:
        return torch.randn(2, 4, width, generator=random)

    return {"states": noise(config.state_dim), "actions": noise(config.act_dim), "rewards": noise(1),
            "returns_to_go": noise(1), "timesteps": torch.arange(4).expand(2, 4)}  # fmt: skip


def flattened_patches(config: Any, random: torch.Generator) -> dict[str, Any]:
    """Pix2Struct's: row and column of each patch, then its values."""
    width = config.vision_config.patch_embed_hidden_size
    places = torch.cartesian_prod(torch.arange(1.0, 5), torch.arange(1.0, 5)).expand(2, 16, 2)
    values = torch.randn(2, 16, width, generator=random)
    return {"flattened_patches": torch.cat([places, values], dim=-1), "decoder_input_ids": text(config, random, 5)}


def spectrogram(config: Any, random: torch.Generator) -> dict[str, Any]:
    return {"input_features": frames(config, random)}


_MAKERS: dict[str, Callable[[Any, torch.Generator], Any]] = {
    "input_ids": text,
    "decoder_input_ids": lambda config, random: text(config, random, 5),
    "bbox": lambda config, random: torch.tensor([1, 2, 5, 7]).expand(2, 12, 4),
    "attention_mask": lambda config, random: torch.ones(2, 12, dtype=torch.long),
    "token_type_ids": lambda config, random: torch.zeros(2, 12, dtype=torch.long),
    "pixel_values": pixels,
    "input_values": waves,
    "input_features": features,
    "past_values": lambda config, random: torch.randn(2, config.context_length, 1, generator=random),
}
