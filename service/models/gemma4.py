"""Gemma 4 and DiffusionGemma: how their config.json and their tensor names become the decoder's own."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from service.models.config_keys import ConfigKeys
from service.models.decoder_config import ExpertsConfig
from service.models.family import POST_NORMS, Family
from service.models.layer_types import every_nth


def _gemma4(keys: ConfigKeys) -> dict[str, Any]:
    keys.skip("hidden_act")
    if keys.take("use_bidirectional_attention") not in (None, "vision"):  # "vision": within a picture
        raise ValueError(f"use_bidirectional_attention = {keys.take('use_bidirectional_attention')!r} is not supported")
    fields: dict[str, Any] = {"embedding_scale": keys.integer("hidden_size") ** 0.5}
    if (cap := keys.take("final_logit_softcapping")) is not None:
        fields["logit_softcap"] = float(cap)
    if keys.flag("enable_moe_block"):
        count, chosen, size = (keys.integer(key) for key in ("num_experts", "top_k_experts", "moe_intermediate_size"))
        fields["experts"] = ExpertsConfig(count, chosen, size, normalise=True, beside=True)
    return fields


def _diffusion(keys: ConfigKeys) -> dict[str, Any]:
    return {**_gemma4(keys), "block_lengths": (keys.integer("canvas_length"),)}


PUBLISHED = {
    "rule": "entropy_bound", "entropy_bound": 0.1, "steps": 48, "t_max": 0.8, "t_min": 0.4, "stability_threshold": 1,
    "confidence_threshold": 0.005,
}  # fmt: skip
"""How a canvas is refined, by the names of parameters of `block_diffusion`, where generation_config.json does not say."""

_BESIDE = (
    (r"\.router\.scale$", ".beside.experts.gate_norm.weight"), (r"\.router\.per_expert_scale$", ".beside.experts.expert_scales"),
    (r"\.router\.proj\.", ".beside.experts.gate."), (r"\.experts\.(gate_up_proj|down_proj)$", r".beside.experts.experts.\1"),
    (r"\.pre_feedforward_layernorm_2\.", ".beside.input_norm."),
    (r"\.post_feedforward_layernorm_1\.", ".beside.dense_norm."),
    (r"\.post_feedforward_layernorm_2\.", ".beside.output_norm."),
)  # fmt: skip

GEMMA4 = Family(
    constants={"norms": "both", "attention_scale": 1.0, "value_norm": True, "layer_scales": 1},
    defaults={
        "tie_word_embeddings": True, "head_dim": 256, "global_head_dim": 512, "sliding_window": 512,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131_072, "sliding_window_pattern": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_144, "hidden_size_per_layer_input": 256,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1e6},
        },
    },
    renamed={"hidden_act": "hidden_activation"},
    layer_types=every_nth("sliding_window_pattern"),
    more=_gemma4,
    names=((r"^model\.language_model\.", "model."), *_BESIDE, *POST_NORMS),
    ignored=r"rotary_emb\.|vision_tower\.|audio_tower\.|embed_vision\.|embed_audio\.",
    ignored_keys=("vocab_size_per_layer_input", "use_double_wide_mlp"),
)  # fmt: skip
"""Those without inputs of each layer and without layers that use others' keys, which are refused by their keys' names."""

DIFFUSION_GEMMA = replace(
    GEMMA4,
    constants={**GEMMA4.constants, "layer_scales": 2, "canvas_window": True, "self_conditioning": True},
    defaults={
        **GEMMA4.defaults, "hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "enable_moe_block": True,
        "final_logit_softcapping": 30.0, "canvas_length": 256, "eos_token_id": 1,
    },
    more=_diffusion,
    names=(
        (r"^model\.decoder\.(.*\.)layer_scalar$", r"model.\1canvas_scalar"), (r"^model\.decoder\.", "model."),
        (r"^model\.encoder\.language_model\.", "model."), (r"self_conditioning\.(\w+_proj)", r"self_conditioning.mlp.\1"),
        *_BESIDE, *POST_NORMS,
    ),
    # Of the encoder of text only the scales are its own.
    ignored=r"rotary_emb\.|^model\.encoder\.(?!language_model\.layers\.\d+\.layer_scalar$)",
    inside="text_config",
)  # fmt: skip
