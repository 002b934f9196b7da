"""Small random checkpoints of every family, written by transformers."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

VOCABULARY = 99
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 3, "n_head": 4, "n_positions": 256, "bos_token_id": 1,
    "eos_token_id": 2,
}  # fmt: skip
LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}  # fmt: skip
YARN = {"rope_type": "yarn", "rope_theta": 1e4, "factor": 4.0, "original_max_position_embeddings": 16, "beta_fast": 8.0}
GEMMA4 = {
    "head_dim": 16, "global_head_dim": 32, "sliding_window": 9, "hidden_size_per_layer_input": 0,
    "layer_types": ["sliding_attention", "full_attention", "full_attention"],
}  # fmt: skip
MOE = {"num_experts_per_tok": 2, "moe_intermediate_size": 24, "num_experts": 5, "head_dim": 16, "max_position_embeddings": 256}


def longrope(dimensions: int, original: int) -> dict[str, Any]:
    factors = {"short_factor": [1.0 + 0.1 * i for i in range(dimensions)], "long_factor": [1.0 + i for i in range(dimensions)]}
    return {"rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": original, **factors}


@dataclass(frozen=True)
class Variant:
    """A config class of transformers and what differs from SIZES; `options` follow the folder in `--model`."""

    config: str
    changes: dict[str, Any] = field(default_factory=dict)
    options: str = ""


VARIANTS: dict[str, Variant] = {
    "llama": Variant("LlamaConfig"),
    "llama-biases-tied": Variant("LlamaConfig", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    "llama-single-kv-wide-heads": Variant("LlamaConfig", {"num_key_value_heads": 1, "head_dim": 24, "rms_norm_eps": 1e-3}),
    "llama-llama3": Variant("LlamaConfig", {"rope_parameters": LLAMA3}),
    "llama-linear": Variant("LlamaConfig", {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
    "llama-dynamic": Variant("LlamaConfig", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}),
    "llama-yarn": Variant("LlamaConfig", {"rope_parameters": YARN}),
    "llama-yarn-mscale": Variant(
        "LlamaConfig", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}}
    ),
    "mistral": Variant("MistralConfig", {"sliding_window": None}),
    "mistral-window": Variant("MistralConfig", {"sliding_window": 11, "head_dim": 16}),
    "qwen2": Variant("Qwen2Config"),
    "qwen2-window-on-some-tied": Variant(
        "Qwen2Config",
        {"use_sliding_window": True, "sliding_window": 9, "max_window_layers": 1, "tie_word_embeddings": True},
    ),
    "qwen3": Variant("Qwen3Config", {"head_dim": 16}),
    "qwen3-biases-window": Variant(
        "Qwen3Config",
        {"head_dim": 32, "attention_bias": True, "use_sliding_window": True, "sliding_window": 7, "max_window_layers": 0},
    ),
    "smollm3": Variant("SmolLM3Config", {"no_rope_layer_interval": 2}),
    "smollm3-listed-window-biases": Variant(
        "SmolLM3Config",
        {
            "no_rope_layers": [1, 0, 0], "use_sliding_window": True, "sliding_window": 8, "attention_bias": True,
            "mlp_bias": True, "tie_word_embeddings": False,
        },
    ),
    "gemma2": Variant("Gemma2Config", {"head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24}),
    "gemma2-tight-caps": Variant(
        "Gemma2Config",
        {"head_dim": 12, "sliding_window": 100, "attn_logit_softcapping": 2.0, "final_logit_softcapping": 3.0},
    ),
    "gemma2-no-caps": Variant(
        "Gemma2Config", {"head_dim": 12, "attn_logit_softcapping": None, "final_logit_softcapping": None}
    ),
    "gemma3": Variant(
        "Gemma3TextConfig",
        {
            "head_dim": 16, "sliding_window": 9, "query_pre_attn_scalar": 24, "num_hidden_layers": 4,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        },
    ),
    "gemma3-scaled-caps": Variant(
        "Gemma3TextConfig",
        {
            "head_dim": 12, "sliding_window": 5, "final_logit_softcapping": 4.0,
            "layer_types": ["full_attention", "sliding_attention", "full_attention"],
            "rope_parameters": {
                "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
                "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
            },
        },
    ),
    "phi3": Variant("Phi3Config", {"sliding_window": 13}),
    "phi3-partial": Variant(
        "Phi3Config", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}
    ),
    "phi3-longrope-short": Variant(
        "Phi3Config", {"original_max_position_embeddings": 128, "rope_parameters": longrope(6, 128)}
    ),
    "phi3-longrope-long": Variant(
        "Phi3Config", {"original_max_position_embeddings": 16, "rope_parameters": longrope(6, 16)}, ",max_model_len=256"
    ),
    "olmo2": Variant("Olmo2Config"),
    "olmo2-tied-biases": Variant("Olmo2Config", {"tie_word_embeddings": True, "attention_bias": True}),
    "gpt2": Variant("GPT2Config", GPT2),
    "gpt2-odd": Variant(
        "GPT2Config", {**GPT2, "n_inner": 70, "activation_function": "relu", "tie_word_embeddings": False,
                       "scale_attn_weights": False, "layer_norm_epsilon": 1e-3}
    ),
    "qwen3_moe": Variant("Qwen3MoeConfig", {**MOE, "norm_topk_prob": True}),
    "qwen3_moe-some-dense": Variant("Qwen3MoeConfig", {**MOE, "mlp_only_layers": [1], "attention_bias": True}),
    "gemma4": Variant("Gemma4TextConfig", {**GEMMA4, "attention_k_eq_v": True, "num_global_key_value_heads": 1}),
    "gemma4-experts-capped": Variant(
        "Gemma4TextConfig",
        {
            **GEMMA4, "enable_moe_block": True, "num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 24,
            "final_logit_softcapping": 4.0,
        },
    ),
    "mixtral": Variant("MixtralConfig", {"num_local_experts": 4}),
    "mixtral-window-tied": Variant("MixtralConfig", {"num_local_experts": 3, "sliding_window": 10, "tie_word_embeddings": True}),
}  # fmt: skip


def write_variant(folder: Path, variant: Variant, dtype: torch.dtype = torch.float32, shard: str = "5GB") -> Any:
    """Saves the model into `folder` and returns it, in float32 and with eager attention."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers

    sizes = {} if variant.config == "GPT2Config" else SIZES
    config = getattr(transformers, variant.config)(**{**sizes, **variant.changes})
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in [*model.parameters(), *(b for name, b in model.named_buffers() if name.endswith("layer_scalar"))]:
            # Far from the usual beginning: biases and norms that matter, distributions that depend on the text.
            spread = 0.2 if parameter.ndim < 2 else 1.3 * parameter.shape[-1] ** -0.5
            parameter.add_(torch.randn(parameter.shape, generator=generator) * spread)
            parameter.copy_(parameter.to(dtype))
    model.to(dtype).save_pretrained(folder, max_shard_size=shard)
    return model.float()
