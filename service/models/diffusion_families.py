"""The families of diffusion language models: mask token, block length, attention and shift beside what a decoder has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from service.models.config_keys import ConfigKeys
from service.models.decoder_config import ExpertsConfig
from service.models.family import Family
from service.models.gemma4 import DIFFUSION_GEMMA
from service.models.layer_types import qwen_moe


def _blocks(length: str, *, shift: bool = False) -> Callable[[ConfigKeys], dict[str, Any]]:
    """A model for block diffusion whose text sees itself in blocks of the length under this key."""

    def fields(keys: ConfigKeys) -> dict[str, Any]:
        mask = keys.take("mask_token_id")
        return {"attention": "block", "block_lengths": (keys.integer(length),), "mask_token_id": mask, "shift": shift}

    return fields


def _llada2(keys: ConfigKeys) -> dict[str, Any]:
    size, shared = keys.integer("moe_intermediate_size"), keys.take("num_shared_experts") or 0
    experts = ExpertsConfig(
        keys.integer("num_experts"), keys.integer("num_experts_per_tok"), size, keys.flag("norm_topk_prob", True),
        keys.one_of("score_function", {"sigmoid": "sigmoid", "softmax": "softmax"}, "sigmoid"),
        keys.number("routed_scaling_factor", 1.0), keys.integer("n_group", 1), keys.integer("topk_group", 1),
        keys.flag("moe_router_enable_expert_bias", True), size * shared,
    )  # fmt: skip
    return {
        **_blocks("block_size")(keys), "experts": experts, "qk_norm": "head" if keys.flag("use_qk_norm", True) else "none",
        "qkv_bias": keys.flag("use_qkv_bias"), "attention_output_bias": keys.flag("use_bias"),
    }  # fmt: skip


def _sequence(keys: ConfigKeys) -> dict[str, Any]:
    """A model for diffusion of whole sequences, in which every token sees every other."""
    return {"attention": "full", "mask_token_id": keys.take("mask_token_id")}


def _llada(keys: ConfigKeys) -> dict[str, Any]:
    keys.one_of("block_type", {"llama": None}, "llama")
    keys.one_of("layer_norm_type", {"rms": None}, "rms")
    for key in ("rope", "layer_norm_with_affine"):
        if not keys.flag(key, True):
            raise ValueError(f"{key} = false is not supported")
    rows, known = keys.take("embedding_size"), keys.take("vocab_size")
    if rows not in (None, known):
        raise ValueError(f"embedding_size {rows!r} beside another vocab_size, {known!r}, is not supported")
    return _sequence(keys)


_LLADA2 = Family(
    defaults={"block_size": 32, "mask_token_id": 156_895, "eos_token_id": 156_892},
    more=_llada2,
    names=(
        (r"^model\.word_embeddings\.", "model.embed_tokens."), (r"\.attention\.", ".self_attn."),
        (r"\.query_key_value\.", ".qkv_proj."), (r"\.dense\.", ".o_proj."), (r"\.query_layernorm\.", ".q_norm."),
        (r"\.key_layernorm\.", ".k_norm."), (r"\.gate\.expert_bias$", ".expert_bias"),
    ),
    ignored_keys=("embedding_dropout", "output_dropout", "max_window_layers", "router_dtype", "use_rmsnorm"),
)  # fmt: skip
_LLADA = Family(
    {"qk_norm": "none"},
    defaults={"mask_token_id": 126_336, "rms_norm_eps": 1e-5, "activation_type": "silu"},
    renamed={
        "hidden_size": "d_model", "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads",
        "num_key_value_heads": "n_kv_heads", "intermediate_size": "mlp_hidden_size", "hidden_act": "activation_type",
        "max_position_embeddings": "max_sequence_length", "tie_word_embeddings": "weight_tying",
    },
    more=_llada,
    names=(
        (r"^model\.transformer\.wte", "model.embed_tokens"), (r"^model\.transformer\.ln_f", "model.norm"),
        (r"^model\.transformer\.ff_out", "lm_head"), (r"^model\.transformer\.blocks", "model.layers"),
        (r"\.([qkv]_proj)\.", r".self_attn.\1."), (r"\.attn_out\.", ".self_attn.o_proj."),
        (r"\.attn_norm\.", ".input_layernorm."), (r"\.ff_norm\.", ".post_attention_layernorm."),
        (r"\.ff_proj\.", ".mlp.gate_proj."), (r"\.up_proj\.", ".mlp.up_proj."), (r"\.ff_out\.", ".mlp.down_proj."),
    ),
    ignored_keys=(
        "alibi_bias_max", "attention_layer_norm_with_affine", "block_group_size", "flash_attention", "flash_attn_varlen",
        "init_cutoff_factor", "init_device", "init_fn", "init_std", "mlp_ratio", "precision", "rope_full_precision",
        "embedding_dropout", "residual_dropout",
    ),
)  # fmt: skip


def diffusion_families(families: Mapping[str, Family]) -> dict[str, Family]:
    """By model_type, also those that are decoders of `families` trained for diffusion."""
    qwen2, qwen3, mixture = families["qwen2"], families["qwen3"], families["qwen3_moe"]
    sdar = replace(
        qwen3, defaults={**qwen3.defaults, "block_size": 4, "mask_token_id": 151_669},
        more=_blocks("block_size"), ignored_keys=("attn_implementation", "ep_size", "fuse_cross_entropy"),
    )  # fmt: skip
    sdar_moe = replace(
        sdar, defaults={**mixture.defaults, "block_size": 4, "mask_token_id": 151_669},
        layer_types=qwen_moe, more=lambda keys: {**sdar.more(keys), **mixture.more(keys)},
    )  # fmt: skip
    fast_dllm = replace(
        qwen2, defaults={**qwen2.defaults, "bd_size": 32, "mask_token_id": 151_665},
        more=_blocks("bd_size", shift=True),
    )  # fmt: skip
    dream = replace(
        qwen2, constants={**qwen2.constants, "shift": True},
        defaults={**qwen2.defaults, "mask_token_id": 151_666}, more=_sequence,
    )  # fmt: skip
    return {
        "sdar": sdar, "sdar_moe": sdar_moe, "Fast_dLLM_Qwen": fast_dllm, "Dream": dream, "llada": _LLADA, "llada2_moe": _LLADA2,
        "diffusion_gemma": DIFFUSION_GEMMA,
    }  # fmt: skip
