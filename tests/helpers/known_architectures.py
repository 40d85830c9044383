"""The architectures that are tried: class, group, and what each needs beyond small sizes (see `tiny_models.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from helpers.tiny_models import (
    IMAGE,
    Architecture,
    decisions,
    flattened_patches,
    frames,
    image_and_text,
    series,
    spectrogram,
    text,
    video_patches,
    waves,
)

_encoder = partial(Architecture, group="encoder")
_decoder = partial(Architecture, group="decoder")
_both = partial(Architecture, group="encoder-decoder")
_experts = partial(Architecture, group="mixture of experts", form="safetensors")  # as upstream: experts apart
_state = partial(Architecture, group="state space")
_vision = partial(Architecture, group="vision")
_audio = partial(Architecture, group="audio")
_multi = partial(Architecture, group="multimodal")
_other = partial(Architecture, group="other")

_TWO = ("input_ids", "pixel_values")
_MROPE = {"rope_scaling": {"type": "default", "rope_type": "default", "mrope_section": [1, 1, 2]}}
_ALL_HEADS = {"num_key_value_heads": 4}
_START = {"decoder_start_token_id": 0}
_QFORMER = {"encoder_hidden_size": 32}
_RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24, 32], "depths": [1, 1, 1, 1],
           "out_features": ["stage2", "stage3", "stage4"]}  # fmt: skip
_NO_TIMM = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, "backbone_config": _RESNET}
_WAVES = {"num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4, "mask_time_prob": 0.0}


def _by_names(names: str, make: Any) -> Iterator[Architecture]:
    return (make(class_=name) for name in names.split())


ENCODERS = (
    *_by_names(
        "AlbertForMaskedLM BertForMaskedLM CanineModel CamembertForMaskedLM ConvBertForMaskedLM DebertaForMaskedLM "
        "DebertaV2ForMaskedLM DistilBertForMaskedLM ElectraForMaskedLM ErnieForMaskedLM EuroBertForMaskedLM "
        "FNetForMaskedLM FunnelForMaskedLM IBertForMaskedLM LayoutLMForMaskedLM LongformerForMaskedLM "
        "MPNetForMaskedLM MegatronBertForMaskedLM ModernBertForMaskedLM NystromformerForMaskedLM RemBertForMaskedLM "
        "RoFormerForMaskedLM RobertaForMaskedLM SqueezeBertForMaskedLM XLMRobertaForMaskedLM YosoForMaskedLM",
        _encoder,
    ),
    _encoder(class_="BigBirdForMaskedLM", config={"block_size": 4, "num_random_blocks": 1}),
    _encoder(
        class_="EsmForMaskedLM",
        config={"vocab_size": 40, "pad_token_id": 1, "mask_token_id": 32},
        inputs=lambda c, r: {"input_ids": text(c, r) % 30 + 4},
    ),
    _encoder(class_="LiltModel", config={"hidden_size": 48}, inputs=("input_ids", "bbox")),
    _encoder(class_="MobileBertForMaskedLM", config={"embedding_size": 32, "intra_bottleneck_size": 32}),
    _encoder(class_="DPRQuestionEncoder"),
    _encoder(class_="XmodForMaskedLM", config={"default_language": "en_XX"}),
)
DECODERS = (
    *_by_names(
        "BioGptForCausalLM BloomForCausalLM CTRLLMHeadModel CodeGenForCausalLM Cohere2ForCausalLM CohereForCausalLM "
        "DiffLlamaForCausalLM FalconForCausalLM Gemma2ForCausalLM Gemma3ForCausalLM GemmaForCausalLM GlmForCausalLM "
        "GPT2LMHeadModel GPTBigCodeForCausalLM GPTJForCausalLM GPTNeoXForCausalLM "
        "GraniteForCausalLM LlamaForCausalLM MistralForCausalLM MptForCausalLM OPTForCausalLM "
        "Olmo2ForCausalLM OlmoForCausalLM OpenAIGPTLMHeadModel PersimmonForCausalLM Phi3ForCausalLM PhiForCausalLM "
        "Qwen2ForCausalLM Qwen3ForCausalLM SmolLM3ForCausalLM StableLmForCausalLM Starcoder2ForCausalLM "
        "XGLMForCausalLM XLMWithLMHeadModel XLNetLMHeadModel",
        _decoder,
    ),
    _decoder(class_="GPTNeoForCausalLM", config={"attention_types": [[["global", "local"], 1]]}),
    _decoder(class_="NemotronForCausalLM", config=_ALL_HEADS),
    _decoder(class_="LlamaForCausalLM", dtype="bfloat16"),
    _decoder(class_="GPT2LMHeadModel", dtype="float16"),
)
ENCODER_DECODERS = (
    *_by_names(
        "BartForConditionalGeneration BigBirdPegasusForConditionalGeneration BlenderbotForConditionalGeneration "
        "LEDForConditionalGeneration M2M100ForConditionalGeneration MBartForConditionalGeneration "
        "MT5ForConditionalGeneration MarianMTModel PegasusForConditionalGeneration PegasusXForConditionalGeneration "
        "PLBartForConditionalGeneration ProphetNetForConditionalGeneration "
        "T5GemmaForConditionalGeneration UMT5ForConditionalGeneration",
        _both,
    ),
    _both(class_="FSMTForConditionalGeneration", config={"src_vocab_size": 128, "tgt_vocab_size": 128}, since=5),
    _both(class_="LongT5ForConditionalGeneration", config=_START),
    _both(class_="T5ForConditionalGeneration", config=_START),
    _both(class_="T5ForConditionalGeneration", config=_START, dtype="bfloat16"),
)
EXPERTS = (
    *_by_names(
        "Ernie4_5_MoeForCausalLM FlexOlmoForCausalLM Glm4MoeForCausalLM GptOssForCausalLM GraniteMoeForCausalLM "
        "JetMoeForCausalLM Llama4ForCausalLM MiniMaxForCausalLM MixtralForCausalLM NllbMoeForConditionalGeneration "
        "OlmoeForCausalLM PhimoeForCausalLM Qwen2MoeForCausalLM Qwen3MoeForCausalLM",
        _experts,
    ),
    _experts(class_="SwitchTransformersForConditionalGeneration", config=_START),
    _experts(class_="DeepseekV2ForCausalLM", config={**_ALL_HEADS, "num_experts_per_tok": 2, "topk_method": "greedy"}),
    _experts(class_="DeepseekV3ForCausalLM", config={**_ALL_HEADS, "qk_head_dim": 16}),
    _experts(class_="MixtralForCausalLM", dtype="bfloat16"),
)
STATE_SPACE = (
    *_by_names("FalconMambaForCausalLM Lfm2ForCausalLM MambaForCausalLM RwkvForCausalLM", _state),
    _state(class_="RecurrentGemmaForCausalLM", config={"num_hidden_layers": 3}),
    _state(
        class_="xLSTMForCausalLM", config={"hidden_size": 128, "embedding_dim": 128, "num_blocks": 2, "chunk_size": 64}
    ),
    _state(
        class_="Mamba2ForCausalLM", config={"num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 2, "state_size": 8}
    ),
    _state(
        class_="BambaForCausalLM",
        config={"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "attn_layer_indices": [1]},
    ),
    _state(
        class_="JambaForCausalLM",
        config={"mamba_dt_rank": 4, "use_mamba_kernels": False, "attn_layer_period": 2, "attn_layer_offset": 1},
    ),
    _state(
        class_="Qwen3NextForCausalLM",
        config={
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "layer_types": ["linear_attention", "full_attention"],
        },
        form="safetensors",
    ),
)
VISION = (
    *_by_names(
        "BeitForImageClassification ConvNextForImageClassification ConvNextV2ForImageClassification "
        "CvtForImageClassification DeiTForImageClassification Dinov2ForImageClassification DPTModel "
        "FocalNetForImageClassification GLPNForDepthEstimation HieraForImageClassification "
        "ImageGPTForCausalImageModeling "
        "MobileNetV1ForImageClassification MobileNetV2ForImageClassification MobileViTForImageClassification "
        "PoolFormerForImageClassification PvtForImageClassification PvtV2ForImageClassification "
        "RegNetForImageClassification ResNetForImageClassification SegformerForSemanticSegmentation "
        "SwiftFormerForImageClassification Swin2SRModel Swinv2ForImageClassification ViTForImageClassification "
        "ViTMAEForPreTraining ViTMSNForImageClassification VitDetModel YolosForObjectDetection SamVisionModel",
        _vision,
    ),
    _vision(
        class_="SwinForImageClassification",
        config={"window_size": 2, "patch_size": 4, "depths": [1, 1], "num_heads": [2, 2]},
    ),
    _vision(class_="BitForImageClassification", config={"num_groups": 4, "embedding_size": 8}),
    _vision(class_="DetrForObjectDetection", config=_NO_TIMM),
    _vision(class_="ConditionalDetrForObjectDetection", config=_NO_TIMM),
    _vision(class_="DeformableDetrForObjectDetection", config=_NO_TIMM),
    _vision(
        class_="RTDetrForObjectDetection",
        config={
            "backbone_config": {**_RESNET, "model_type": "rt_detr_resnet"},
            "encoder_in_channels": [16, 24, 32],
            "encoder_hidden_dim": 32,
            "decoder_in_channels": [32, 32, 32],
        },
    ),
    _vision(
        class_="VideoMAEForVideoClassification",
        config={"num_frames": 4},
        inputs=lambda c, r: {"pixel_values": torch.randn(2, 4, 3, IMAGE, IMAGE, generator=r)},
    ),
    _vision(class_="ViTForImageClassification", dtype="float16"),
)
AUDIO = (
    *_by_names(
        "Data2VecAudioForCTC HubertForCTC SEWDForCTC SEWForCTC UniSpeechForCTC UniSpeechSatForCTC Wav2Vec2ForCTC "
        "WavLMForCTC",
        partial(_audio, config=_WAVES),
    ),
    _audio(class_="Wav2Vec2ConformerForCTC", config={**_WAVES, "vocab_size": 128}),
    _audio(class_="Wav2Vec2BertForCTC", config={"vocab_size": 128, "conformer_conv_dropout": 0.0}, inputs=spectrogram),
    _audio(class_="WhisperForConditionalGeneration"),
    _audio(
        class_="Speech2TextForConditionalGeneration",
        inputs=lambda c, r: {"input_features": frames(c, r), "decoder_input_ids": text(c, r, 5)},
    ),
    _audio(
        class_="SpeechT5ForSpeechToText",
        config=_WAVES,
        inputs=lambda c, r: {"input_values": waves(c, r), "decoder_input_ids": text(c, r, 5) % 60},
    ),
    _audio(
        class_="ASTForAudioClassification",
        config={"max_length": 32, "num_mel_bins": 32},
        inputs=lambda c, r: {"input_values": torch.randn(2, 32, 32, generator=r)},
    ),
    _audio(
        class_="EncodecModel", config={"num_filters": 8}, inputs=lambda c, r: {"input_values": waves(c, r)[:, None]}
    ),
    _audio(
        class_="DacModel",
        config={"encoder_hidden_size": 8, "decoder_hidden_size": 128},
        inputs=lambda c, r: {"input_values": waves(c, r)[:, None]},
    ),
    _audio(
        class_="MimiModel",
        config={"num_filters": 8, "upsample_groups": 32},
        inputs=lambda c, r: {"input_values": torch.randn(1, 1, 3840, generator=r)},
    ),
    _audio(
        class_="VitsModel",
        config={"upsample_initial_channel": 32, "flow_size": 16, "wavenet_dilation_rate": 1},
        inputs=lambda c, r: {"input_ids": text(c, r) % 30},
    ),
    _audio(
        class_="MusicgenForCausalLM",
        inputs=lambda c, r: {"input_ids": torch.randint(0, 100, (2 * c.num_codebooks, 6), generator=r)},
        generates=False,
    ),
    _audio(class_="ParakeetForCTC", inputs=spectrogram),
)
MULTIMODAL = (
    *_by_names(
        "Florence2ForConditionalGeneration GitForCausalLM GotOcr2ForConditionalGeneration "
        "MgpstrForSceneTextRecognition",
        _multi,
    ),
    *(
        _multi(class_=name, inputs=_TWO)
        for name in (
            "AltCLIPModel",
            "CLIPModel",
            "CLIPSegModel",
            "ChineseCLIPModel",
            "FlavaModel",
            "GroupViTModel",
            "SiglipModel",
        )
    ),
    _multi(class_="BlipForConditionalGeneration", inputs=_TWO),
    _multi(class_="Pix2StructForConditionalGeneration", inputs=flattened_patches, generates=False),
    _multi(class_="BlipForConditionalGeneration", dtype="bfloat16", inputs=_TWO),
    _multi(class_="BlipForQuestionAnswering", inputs=(*_TWO, "decoder_input_ids"), generates=False),
    _multi(class_="LlavaForConditionalGeneration", inputs=image_and_text(16)),
    _multi(
        class_="PaliGemmaForConditionalGeneration",
        config={"text_config": {"num_key_value_heads": 1}},
        inputs=image_and_text(16),
    ),
    _multi(class_="Gemma3ForConditionalGeneration", config={"mm_tokens_per_image": 4}, inputs=image_and_text(4)),
    _multi(
        class_="Blip2ForConditionalGeneration",
        config={"qformer_config": _QFORMER, "image_token_index": 120},
        inputs=image_and_text(8),
    ),
    _multi(
        class_="InstructBlipForConditionalGeneration",
        config={"qformer_config": _QFORMER, "image_token_index": 120},
        inputs=image_and_text(8, qformer_input_ids=torch.ones(2, 4, dtype=torch.long)),
    ),
    _multi(class_="Idefics3ForConditionalGeneration"),
    _multi(class_="Qwen2VLForConditionalGeneration", config={"text_config": _MROPE}, inputs=video_patches),
    _multi(class_="Qwen2_5_VLForConditionalGeneration", config={"text_config": _MROPE}, inputs=video_patches),
    _multi(
        class_="VisionEncoderDecoderModel",
        config={
            "encoder": {"model_type": "vit"},
            "decoder": {"model_type": "gpt2", "is_decoder": True, "add_cross_attention": True},
        },
        generates=False,
    ),
    _multi(class_="ViltModel", inputs=_TWO),
    _multi(
        class_="LayoutLMv3Model",
        config={"coordinate_size": 6, "shape_size": 4},
        inputs=("input_ids", "bbox", "pixel_values"),
    ),
    _multi(class_="OwlViTModel", inputs=_TWO),
    _multi(class_="Qwen2AudioForConditionalGeneration"),
)
OTHER = (
    _other(
        class_="TimeSeriesTransformerForPrediction",
        config={"prediction_length": 4, "context_length": 8, "lags_sequence": [1, 2], "num_time_features": 2},
        inputs=series,
        generates=False,
    ),
    _other(class_="PatchTSTModel", inputs=("past_values",)),
    _other(class_="DecisionTransformerModel", inputs=decisions),
    _other(class_="TapasForMaskedLM"),
)

ARCHITECTURES = (*ENCODERS, *DECODERS, *ENCODER_DECODERS, *EXPERTS, *STATE_SPACE, *VISION, *AUDIO, *MULTIMODAL, *OTHER)
