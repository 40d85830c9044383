"""A dummy of `florence-community/Florence-2-base`: eleven files, with weights as float16 safetensors.

The weights file has exactly upstream's size (463,178,864 bytes): the tied embedding is stored once, under the name of
the shared one. The answers are generated words and location tokens that depend on image and task, and end after ANSWER
tokens: the later positions point at the end token's embedding. Otherwise a request for up to 1,024 tokens, as in
Florence-2's documentation, would get all 1,024.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prebake.documents.table import canonical_json
from prebake.families.compat import torchvision_operators
from prebake_build.dummies import archives, progress_bar, tokenizers
from prebake_build.dummies.weights import BASIC_RULES, Array, Fill, Rules, Tensor, fill_for, random, state_dict_of

SHARED = "model.language_model.shared.weight"
POSITIONS = "model.language_model.decoder.embed_positions.weight"
ANSWER = 24
"""Tokens of an answer, including begin and end."""

_BART_OFFSET = 2
"""BART's position table has an offset of two rows."""
_END = 2

_RULES: Rules = (
    (r"decoder\.embed_positions\.weight", Fill(0.0, 2**-2)),
    (r"encoder_attn\.out_proj\.weight", Fill(0.0, 2**-4)),
    *BASIC_RULES,
)

_TEXT: Mapping[str, Mapping[str, int]] = {
    "full": {"d_model": 768, "encoder_ffn_dim": 3072, "decoder_ffn_dim": 3072, "encoder_layers": 6,
             "decoder_layers": 6, "encoder_attention_heads": 12, "decoder_attention_heads": 12},
    "tiny": {"d_model": 64, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128, "encoder_layers": 2,
             "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4},
}  # fmt: skip
_VISION: Mapping[str, Mapping[str, Any]] = {
    "full": {"depths": [1, 1, 9, 1], "embed_dim": [128, 256, 512, 1024], "num_heads": [4, 8, 16, 32],
             "num_groups": [4, 8, 16, 32], "window_size": 12, "projection_dim": 768},
    "tiny": {"depths": [1, 1, 1, 1], "embed_dim": [16, 16, 32, 64], "num_heads": [1, 1, 2, 4],
             "num_groups": [1, 1, 2, 4], "window_size": 4, "projection_dim": 64},
}  # fmt: skip
_VOCABULARY = {"full": 50_265, "tiny": 1_024}
_IMAGE = {"full": 768, "tiny": 128}

# Florence-2's own tokens, in its order, then the placeholder of the image.
_ADDED = (
    "<od>", "</od>", "<ocr>", "</ocr>", *(f"<loc_{place}>" for place in range(1000)), "<cap>", "</cap>", "<ncap>",
    "</ncap>", "<dcap>", "</dcap>", "<grounding>", "</grounding>", "<seg>", "</seg>", "<sep>", "<region_cap>",
    "</region_cap>", "<region_to_desciption>", "</region_to_desciption>", "<proposal>", "</proposal>", "<poly>",
    "</poly>", "<and>", "<image>",
)  # fmt: skip
_NAMED = {"bos_token": "<s>", "cls_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>",
          "pad_token": "<pad>", "sep_token": "</s>", "unk_token": "<unk>"}  # fmt: skip
_GENERATION = {
    "bos_token_id": 0, "decoder_start_token_id": 2, "early_stopping": True, "eos_token_id": _END,
    "forced_bos_token_id": 0, "forced_eos_token_id": 2, "no_repeat_ngram_size": 3, "num_beams": 3, "pad_token_id": 1,
}  # fmt: skip


def configuration(size: str) -> dict[str, Any]:
    """`config.json`. The embedding has more rows than there are tokens: upstream padded it to a multiple of 64."""
    tokens = _VOCABULARY[size] + len(_ADDED)
    text = {
        **_TEXT[size], "activation_dropout": 0.1, "activation_function": "gelu", "attention_dropout": 0.1,
        "bos_token_id": 0, "classifier_dropout": 0.0, "decoder_layerdrop": 0.0, "decoder_start_token_id": 2,
        "dropout": 0.1, "encoder_layerdrop": 0.0, "eos_token_id": _END, "forced_eos_token_id": 2, "init_std": 0.02,
        "is_encoder_decoder": True, "max_position_embeddings": 1024, "model_type": "bart",
        "num_hidden_layers": _TEXT[size]["encoder_layers"], "pad_token_id": 1, "scale_embedding": False,
        "tie_word_embeddings": True, "use_cache": True, "vocab_size": -(-tokens // 64) * 64,
    }  # fmt: skip
    vision = {
        **_VISION[size], "activation_function": "gelu", "drop_path_rate": 0.1, "in_channels": 3,
        "initializer_range": 0.02, "max_position_embeddings": 50, "max_temporal_embeddings": 100, "mlp_ratio": 4.0,
        "model_type": "florence_vision", "patch_padding": [3, 1, 1, 1], "patch_prenorm": [False, True, True, True],
        "patch_size": [7, 3, 3, 3], "patch_stride": [4, 2, 2, 2], "qkv_bias": True,
    }  # fmt: skip
    return {
        "architectures": ["Florence2ForConditionalGeneration"], "dtype": "float16", "image_token_id": tokens - 1,
        "is_encoder_decoder": True, "model_type": "florence2", "text_config": text, "tie_word_embeddings": True,
        "transformers_version": "4.56.1", "vision_config": vision,
    }  # fmt: skip


def tensors(size: str, seed: int) -> list[Tensor]:
    """The tensors of the safetensors file."""
    torchvision_operators()
    from transformers import Florence2Config, Florence2ForConditionalGeneration

    config = Florence2Config.from_dict(configuration(size))
    state, _ = state_dict_of(lambda: Florence2ForConditionalGeneration(config))
    tied = {"lm_head.weight", *(f"model.language_model.{part}.embed_tokens.weight" for part in ("encoder", "decoder"))}
    return [
        random(seed, name, shape, fill_for(name, _RULES), dtype="float16",
               edit=_ending(seed, state[SHARED][0][1]) if name == POSITIONS else None)
        for name, (shape, _) in state.items()
        if name not in tied
    ]  # fmt: skip


def _ending(seed: int, width: int) -> Any:
    # A random tensor draws its rows in order from its stream, so a shorter tensor equals the first rows.
    first_rows = random(seed, SHARED, (_END + 1, width), fill_for(SHARED, _RULES))

    def edit(positions: Array) -> None:
        positions[_BART_OFFSET + ANSWER - 2 :] = first_rows.array()[_END] * 8

    return edit


def write(folder: Path, size: str, seed: int) -> None:
    """Write the checkpoint's eleven files into `folder`."""
    vocabulary, merges = tokenizers.byte_level_bpe(_VOCABULARY[size])
    documents = {
        "config.json": configuration(size),
        "generation_config.json": {**_GENERATION, "_from_model_config": True, "transformers_version": "4.56.1"},
        "tokenizer.json": tokenizers.byte_level_document(vocabulary, merges, _ADDED),
        "vocab.json": vocabulary,
        "added_tokens.json": {token: len(vocabulary) + index for index, token in enumerate(_ADDED)},
        **_processor_documents(size, vocabulary),
    }
    for name, document in documents.items():
        (folder / name).write_text(canonical_json(document), encoding="utf-8", newline="\n")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")
    found = tensors(size, seed)
    with progress_bar("florence-2-base", sum(tensor.nbytes for tensor in found)) as progress:
        archives.write_safetensors(folder / "model.safetensors", found, progress)


def _processor_documents(size: str, vocabulary: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    pixels = {"height": _IMAGE[size], "width": _IMAGE[size]}
    image = {
        "crop_size": pixels, "do_center_crop": False, "do_convert_rgb": None, "do_normalize": True,
        "do_rescale": True, "do_resize": True, "image_mean": [0.485, 0.456, 0.406],
        "image_processor_type": "CLIPImageProcessor",
        # One token per cell of the last stage, which halves the picture five times, and one for their mean.
        "image_seq_length": (_IMAGE[size] // 32) ** 2 + 1, "image_std": [0.229, 0.224, 0.225],
        "processor_class": "Florence2Processor", "resample": 3, "rescale_factor": 0.00392156862745098,
        "size": pixels,
    }  # fmt: skip
    place = r"<loc_(\d+)>"
    tasks: dict[str, Any] = {task: {} for task in (
        "pure_text", "description_with_bboxes", "description_with_polygons", "polygons", "bboxes",
        "description_with_bboxes_or_polygons",
    )}  # fmt: skip
    tasks["ocr"] = {"area_threshold": 0.0, "pattern": "(.+?)" + place * 8}
    tasks["phrase_grounding"] = {"banned_grounding_tokens": ["it", "the image"]}
    ids = {token: vocabulary[token] for token in _NAMED.values()}
    ids.update((token, len(vocabulary) + index) for index, token in enumerate(_ADDED))
    plain: dict[str, Any] = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    mask = {**plain, "content": _NAMED["mask_token"], "lstrip": True, "normalized": True}
    decoder = {
        str(index): {**plain, "content": content, "normalized": index < len(vocabulary), "special": True}
        for content, index in ids.items()
    }
    decoder[str(vocabulary[_NAMED["mask_token"]])] = {**mask, "special": True}
    others = list(_ADDED[:-1])
    special = {
        **_NAMED,
        "mask_token": mask,
        "additional_special_tokens": [{**plain, "content": content} for content in others],
    }
    tokenizer = {
        **_NAMED, "add_prefix_space": False, "added_tokens_decoder": decoder, "additional_special_tokens": others,
        "clean_up_tokenization_spaces": False, "errors": "replace", "extra_special_tokens": {"image_token": "<image>"},
        "image_token": "<image>", "model_max_length": 1024, "processor_class": "Florence2Processor",
        "tokenizer_class": "BartTokenizer", "trim_offsets": True,
    }  # fmt: skip
    return {
        "preprocessor_config.json": image,
        "processor_config.json": {"num_additional_image_tokens": 0, "post_processor_config": tasks,
                                  "processor_class": "Florence2Processor"},
        "special_tokens_map.json": special,
        "tokenizer_config.json": tokenizer,
    }  # fmt: skip
