"""A dummy of `Salesforce/blip-image-captioning-base`: seven files, with weights only as a pickle.

At full size, the two JSON documents without a vocabulary equal upstream's, bit for bit. As upstream, the pickle
contains the output embedding twice, and the `position_ids` buffer that older versions of transformers saved. The
captions are generated words that depend on the image and never end early: the bias forbids every token that is not a
whole word.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from prebake.documents.table import canonical_json
from prebake.families.compat import torchvision_operators
from prebake_build.dummies import archives, progress_bar, tokenizers
from prebake_build.dummies.weights import (
    BASIC_RULES,
    BIAS,
    Fill,
    Rules,
    Tensor,
    constant,
    fill_for,
    random,
    state_dict_of,
)

OUTPUT = "text_decoder.cls.predictions"
WORDS = "text_decoder.bert.embeddings.word_embeddings.weight"
POSITION_IDS = "text_decoder.bert.embeddings.position_ids"

_FORBIDDEN = -100.0
"""A bias larger than any logit of these weights (a few units)."""

# Without the first two, every caption would repeat one word twenty times.
_RULES: Rules = (
    (r"text_decoder.*position_embeddings\.weight", Fill(0.0, 2**-2)),
    (r"crossattention\.output\.dense\.weight", Fill(0.0, 2**-4)),
    *BASIC_RULES,
)

# Keys that transformers 4.26 wrote into every nested configuration; newer versions must ignore them.
_WRITTEN_BY_4_26: Mapping[str, Any] = {
    **dict.fromkeys((
        "architectures", "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "cross_attention_hidden_size",
        "decoder_start_token_id", "eos_token_id", "exponential_decay_length_penalty", "finetuning_task",
        "forced_bos_token_id", "forced_eos_token_id", "pad_token_id", "prefix", "problem_type", "sep_token_id",
        "suppress_tokens", "task_specific_params", "tokenizer_class", "torch_dtype",
    )),
    **dict.fromkeys((
        "add_cross_attention", "do_sample", "early_stopping", "is_decoder", "is_encoder_decoder",
        "output_attentions", "output_hidden_states", "output_scores", "remove_invalid_values",
        "return_dict_in_generate", "tf_legacy_loss", "tie_encoder_decoder", "torchscript", "use_bfloat16",
    ), False),
    **dict.fromkeys((
        "chunk_size_feed_forward", "encoder_no_repeat_ngram_size", "min_length", "no_repeat_ngram_size",
    ), 0),
    **dict.fromkeys(("num_beam_groups", "num_beams", "num_return_sequences"), 1),
    **dict.fromkeys(("length_penalty", "repetition_penalty", "temperature", "top_p", "typical_p"), 1.0),
    "_name_or_path": "", "diversity_penalty": 0.0, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
    "initializer_factor": 1.0, "initializer_range": 0.02, "label2id": {"LABEL_0": 0, "LABEL_1": 1},
    "max_length": 20, "pruned_heads": {}, "return_dict": True, "tie_word_embeddings": True, "top_k": 50,
    "transformers_version": "4.26.0.dev0",
}  # fmt: skip

_SHAPES: Mapping[str, Mapping[str, int]] = {
    "full": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_attention_heads": 4, "num_hidden_layers": 2},
}
_IMAGE = {"full": 384, "tiny": 64}
_VOCABULARY = {"full": 30_522, "tiny": 1_022}
_SPECIAL = {"cls_token": "[CLS]", "mask_token": "[MASK]", "pad_token": "[PAD]", "sep_token": "[SEP]",
            "unk_token": "[UNK]"}  # fmt: skip


def configuration(size: str) -> dict[str, Any]:
    """`config.json`. Two more tokens than the vocabulary has: BLIP's `[DEC]`, which begins a caption, and `[ENC]`."""
    text = {
        **_WRITTEN_BY_4_26, **_SHAPES[size], "model_type": "blip_text_model", "attention_probs_dropout_prob": 0.0,
        "bos_token_id": _VOCABULARY[size], "eos_token_id": 2, "hidden_act": "gelu", "hidden_dropout_prob": 0.0,
        "is_decoder": True, "layer_norm_eps": 1e-12, "max_position_embeddings": 512, "pad_token_id": 0,
        "projection_dim": 768, "sep_token_id": 102, "use_cache": True, "vocab_size": _VOCABULARY[size] + 2,
    }  # fmt: skip
    vision = {
        **_WRITTEN_BY_4_26, **_SHAPES[size], "model_type": "blip_vision_model", "attention_dropout": 0.0,
        "dropout": 0.0, "hidden_act": "gelu", "image_size": _IMAGE[size], "layer_norm_eps": 1e-05,
        "num_channels": 3, "patch_size": 16, "projection_dim": 512,
    }  # fmt: skip
    if size != "full":  # transformers refuses other than the default here where it differs from the vision tower's
        text["encoder_hidden_size"] = vision["hidden_size"]
    return {
        "_commit_hash": None, "architectures": ["BlipForConditionalGeneration"], "image_text_hidden_size": 256,
        "initializer_factor": 1.0, "logit_scale_init_value": 2.6592, "model_type": "blip", "projection_dim": 512,
        "text_config": text, "torch_dtype": "float32", "transformers_version": None, "vision_config": vision,
    }  # fmt: skip


def tensors(size: str, seed: int) -> tuple[list[Tensor], Mapping[str, Any]]:
    """The tensors of the pickle, in upstream's order, and the module versions."""
    torchvision_operators()
    from transformers import BlipConfig, BlipForConditionalGeneration

    state, metadata = state_dict_of(lambda: BlipForConditionalGeneration(BlipConfig.from_dict(configuration(size))))
    found = [_tensor(name, shape, size, seed) for name, (shape, _) in state.items()]
    positions = np.arange(512, dtype=np.int64)[None]
    found.insert([tensor.name for tensor in found].index(WORDS), constant(POSITION_IDS, positions))
    return found, metadata


def _tensor(name: str, shape: tuple[int, ...], size: str, seed: int) -> Tensor:
    if name == f"{OUTPUT}.bias":
        first_word = tokenizers.wordpiece(_VOCABULARY[size])[1]

        def forbid(bias: Any) -> None:
            bias[:first_word] = bias[_VOCABULARY[size] :] = _FORBIDDEN

        return random(seed, name, shape, BIAS, edit=forbid)
    if name == f"{OUTPUT}.decoder.bias":  # one parameter under two names
        bias = _tensor(f"{OUTPUT}.bias", shape, size, seed)
        return Tensor(name=name, dtype=bias.dtype, shape=shape, chunks=bias.chunks, same_storage_as=bias.name)
    # The output embedding has the same values, and its own storage.
    stream = WORDS if name == f"{OUTPUT}.decoder.weight" else name
    return random(seed, name, shape, fill_for(name, _RULES), stream=stream)


def write(folder: Path, size: str, seed: int) -> None:
    """Write the checkpoint's seven files into `folder`."""
    vocabulary, _ = tokenizers.wordpiece(_VOCABULARY[size])
    preprocessor = {
        "do_normalize": True, "do_resize": True, "image_processor_type": "BlipImageProcessor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711],
        "processor_class": "BlipProcessor", "size": _IMAGE[size],
    }  # fmt: skip
    tokenizer = {
        **_SPECIAL, "do_basic_tokenize": True, "do_lower_case": True, "model_max_length": 512,
        "model_input_names": ["input_ids", "attention_mask"], "name_or_path": "bert-base-uncased",
        "never_split": None, "processor_class": "BlipProcessor", "special_tokens_map_file": None,
        "strip_accents": None, "tokenize_chinese_chars": True, "tokenizer_class": "BertTokenizer",
    }  # fmt: skip
    documents = {
        "config.json": configuration(size),
        "preprocessor_config.json": preprocessor,
        "special_tokens_map.json": _SPECIAL,
        "tokenizer.json": tokenizers.wordpiece_document(vocabulary),
        "tokenizer_config.json": tokenizer,
    }
    for name, document in documents.items():
        (folder / name).write_text(canonical_json(document), encoding="utf-8", newline="\n")
    (folder / "vocab.txt").write_text("".join(f"{token}\n" for token in vocabulary), encoding="utf-8", newline="\n")
    found, metadata = tensors(size, seed)
    with progress_bar("blip-base", sum(tensor.nbytes for tensor in found)) as progress:
        archives.write_torch_zip(folder / "pytorch_model.bin", found, metadata, progress)
