"""Any architecture of transformers, made tiny: its own configuration class with small sizes, random weights, inputs.

The sizes are found by name: whatever a configuration calls `hidden_size`, `d_model` or `n_embd` becomes 32, in
its parts too. What an architecture needs beyond that stands with it, in `architectures.py`.
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
IMAGE = 32

_SIZES: tuple[tuple[str, int], ...] = (
    (r"(text_|vision_|image_)?vocab_size|num_embeddings|codebook_size|hash_bucket_size", VOCABULARY),
    (r"(.*_)?(hidden_size|embed_dim|d_model|embedding_size|projection_dim|projector_dim|emb_dim|embedding_dim|n_embd|proj_size)"
     r"|dim|hidden_dim|output_dim|word_embed_proj_dim|output_hidden_size|vector_quantization_hidden_dimension", 32),
    (r"(.*_)?(intermediate_size|ffn_dim|d_ff|mlp_dim|inner_dim|ffn_hidden_size|intermediate_dim|feedforward_dim)|n_inner", 64),
    (r"(num_|n_)?(encoder_|decoder_|hidden_|.*_)?layers?|n_layer|depth|num_hidden_groups|(.*_)?depth", 2),
    (r"num_(key_value|kv)_heads|(.*_)num_key_value_heads", 2),
    (r"(num_|n_)?(.*_)?(attention_|attn_)?(heads?|n_heads)", 4),
    (r"head_dim|.*_head_dim|d_kv|rotary_dim|dim_head", 8),
    (r"image_size|pretrain_image_size|input_size|max_image_size", IMAGE),
    (r"patch_size", 8),
    (r"max_position_embeddings|n_positions|n_ctx|max_(source|target)_positions|max_seq_len|.*max_position_embeddings", 64),
    (r"num_(local_)?experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok|moe_k|top_k_experts", 2),
    (r"n_group|topk_group|first_k_dense_replace", 1),
    (r"(.*_)?lora_rank", 8),
    (r"num_queries|num_query_tokens|num_denoising|.*n_latents", 8),
    (r"sliding_window|attention_window|chunk_size|local_attention|global_attn_every_n_layers", 8),
)  # fmt: skip
_LISTS: tuple[tuple[str, tuple[int, ...]], ...] = (
    (r"depths|layers|layers_per_block|num_conv_layers", (1, 1, 1, 1, 1)),
    (r"(.*_)?hidden_sizes|embed_dims|embed_dim|neck_hidden_sizes|encoder_hidden_sizes|embedding_dims", (8, 16, 24, 32, 40, 48, 56, 64)),
    (r"num_attention_heads|num_heads", (1, 2, 2, 4, 4)),
)  # fmt: skip
"""Lists keep their lengths."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One architecture, as the table names it."""

    class_: str
    """A class of transformers."""
    group: str
    config: Mapping[str, Any] = field(default_factory=dict)
    """Arguments of its configuration class beyond the tiny sizes; parts as mappings."""
    inputs: Callable[[Any, torch.Generator], dict[str, Any]] | None = None
    """Inputs from configuration and generator, where the ones found by name do not serve."""
    checkpoint: str = "safetensors"
    dtype: str = "float32"
    fallback: str | None = None
    """The reason, where the architecture cannot be mapped."""


def tiny_config(config_class: Any, extra: Mapping[str, Any] | None = None) -> Any:
    """The configuration class with small sizes, and `extra` over them."""
    return config_class(**_tiny_arguments(config_class(), dict(extra or {})))


def _tiny_arguments(default: Any, extra: dict[str, Any]) -> dict[str, Any]:
    from transformers import PretrainedConfig

    arguments: dict[str, Any] = {}
    for name in default.to_dict():
        value = getattr(default, name, None)
        if isinstance(value, PretrainedConfig):
            part = extra.get(name)
            arguments[name] = {"model_type": value.model_type} | _tiny_arguments(value, dict(part or {}))
        elif (small := _small(name, value)) is not None:
            arguments[name] = small
    return arguments | {name: value for name, value in extra.items() if name not in arguments or not isinstance(arguments[name], dict)}


def _small(name: str, value: object) -> object:
    """The tiny value, or None where the default may stay."""
    if isinstance(value, bool):
        return None
    if name.endswith(("token_id", "token_index", "_token")) or re.fullmatch(r".*_(id|idx)", name):
        return _token(name) if isinstance(value, int) and value >= VOCABULARY - 28 else None
    if isinstance(value, int):
        return next((size for pattern, size in _SIZES if re.fullmatch(pattern, name) and value > size), None)
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], int):
        sizes = next((sizes for pattern, sizes in _LISTS if re.fullmatch(pattern, name)), None)
        return sizes and list(sizes[: len(value)])
    return None


def _token(name: str) -> int:
    """Special tokens beyond the tiny vocabulary: begin and end 1 and 2, others in its last 28."""
    known = {"bos": 1, "eos": 2, "pad": 0, "sep": 3, "cls": 4, "decoder_start": 1}
    return known.get(name.removesuffix("_token_id"), VOCABULARY - 28 + zlib.crc32(name.encode()) % 28)


def tiny_model(architecture: Architecture) -> Any:
    """The model with random weights, in evaluation mode; the same weights every time."""
    import transformers

    cls = getattr(transformers, architecture.class_)
    torch.manual_seed(0)
    config = tiny_config(cls.config_class, architecture.config)
    return cls(config).eval()


def inputs_of(model: Any, architecture: Architecture) -> dict[str, Any]:
    """Inputs of its forward pass."""
    random = torch.Generator().manual_seed(1)
    if architecture.inputs:
        return architecture.inputs(model.config, random)
    accepted = inspect.signature(model.forward).parameters
    main = model.main_input_name
    names = [name for name in accepted if name in _MAKERS and (name == main or name in _WANTED)]
    if main not in names:
        names.append(main)
    if model.config.is_encoder_decoder and "decoder_input_ids" in accepted:
        names.append("decoder_input_ids")
    return {name: _MAKERS[name](model.config, random) for name in names}


def text(config: Any, random: torch.Generator, length: int = 12) -> torch.Tensor:
    return torch.randint(5, VOCABULARY - 30, (2, length), generator=random)


def pixels(config: Any, random: torch.Generator) -> torch.Tensor:
    vision = getattr(config, "vision_config", None) or config
    size = getattr(vision, "image_size", IMAGE) or IMAGE
    height, width = size if isinstance(size, (list, tuple)) else (size, size)
    return torch.randn(2, getattr(vision, "num_channels", 3) or 3, height, width, generator=random)


def waves(config: Any, random: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 1600, generator=random)


def _features(config: Any, random: torch.Generator) -> torch.Tensor:
    return torch.randn(2, 64, getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None) or 80, generator=random)


_MAKERS: dict[str, Callable[[Any, torch.Generator], Any]] = {
    "input_ids": text,
    "decoder_input_ids": lambda config, random: text(config, random, 5),
    "pixel_values": pixels,
    "input_values": waves,
    "input_features": _features,
}
_WANTED = {"input_ids"}
