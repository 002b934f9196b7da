"""config.json as it stands in repositories of the hub, in the spelling of transformers 4, is read as transformers reads it."""

from __future__ import annotations

from typing import Any

import pytest

from service.models.decoder_config import DecoderConfig
from service.models.families import read_config

transformers = pytest.importorskip("transformers")

COMMON = {
    "architectures": ["AForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1, "eos_token_id": [2, 3],
    "initializer_range": 0.02, "torch_dtype": "bfloat16", "transformers_version": "4.44.0", "use_cache": True,
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 12, "num_attention_heads": 4, "vocab_size": 320,
}  # fmt: skip
SILU = {"hidden_act": "silu", "rms_norm_eps": 1e-5, "num_key_value_heads": 2, "max_position_embeddings": 4096}
GEMMA = {"hidden_act": "gelu_pytorch_tanh", "hidden_activation": "gelu_pytorch_tanh", "head_dim": 32, "rms_norm_eps": 1e-6}
FACTORS = {"short_factor": [1.0] * 8, "long_factor": [4.0] * 8}

OLD: dict[str, dict[str, Any]] = {
    "llama 3": {
        **COMMON, **SILU, "model_type": "llama", "attention_bias": False, "mlp_bias": False, "pretraining_tp": 1,
        "rope_theta": 5e5, "tie_word_embeddings": False,
        "rope_scaling": {
            "factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0, "original_max_position_embeddings": 512,
            "rope_type": "llama3",
        },
    },
    "llama 2 as it first was": {
        **COMMON, **SILU, "model_type": "llama", "rope_scaling": {"type": "linear", "factor": 2.0}, "head_dim": None,
    },
    "smollm2": {
        **COMMON, **SILU, "model_type": "llama", "is_llama_config": True, "rope_interleaved": False, "rope_scaling": None,
        "tie_word_embeddings": True, "transformers.js_config": {"kv_cache_dtype": {"q4f16": "float16"}}, "rope_theta": 1e5,
    },
    "mistral": {**COMMON, **SILU, "model_type": "mistral", "sliding_window": 512, "rope_theta": 1e4},
    "mistral without a window": {**COMMON, **SILU, "model_type": "mistral", "sliding_window": None, "head_dim": 32},
    "qwen2.5": {
        **COMMON, **SILU, "model_type": "qwen2", "max_window_layers": 4, "sliding_window": 512, "use_sliding_window": False,
        "use_mrope": False, "rope_theta": 1e6, "tie_word_embeddings": True,
    },
    "qwen2.5 with yarn": {
        **COMMON, **SILU, "model_type": "qwen2", "rope_theta": 1e6,
        "rope_scaling": {"factor": 4.0, "original_max_position_embeddings": 1024, "type": "yarn"},
    },
    "qwen3": {**COMMON, **SILU, "model_type": "qwen3", "head_dim": 128, "attention_bias": False, "rope_scaling": None},
    "smollm3": {
        **COMMON, **SILU, "model_type": "smollm3", "no_rope_layer_interval": 4, "no_rope_layers": [1, 1, 1, 0] * 3,
        "layer_types": ["full_attention"] * 12, "max_window_layers": 28, "rope_theta": 5e6, "use_sliding_window": False,
        "sliding_window": None, "mlp_bias": False, "pretraining_tp": 2,
    },
    "gemma2": {
        **COMMON, **GEMMA, "model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
        "cache_implementation": "hybrid", "query_pre_attn_scalar": 32, "sliding_window": 512, "rope_theta": 1e4,
        "num_key_value_heads": 2, "max_position_embeddings": 8192, "sliding_window_size": 512,
    },
    "gemma3 text": {
        **COMMON, **GEMMA, "model_type": "gemma3_text", "query_pre_attn_scalar": 32, "rope_local_base_freq": 1e4,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "rope_theta": 1e6, "sliding_window": 512,
        "sliding_window_pattern": 6, "attn_logit_softcapping": None, "num_key_value_heads": 1,
    },
    "phi3": {
        **COMMON, **SILU, "model_type": "phi3", "auto_map": {"AutoConfig": "x.Y"}, "embd_pdrop": 0.0, "resid_pdrop": 0.0,
        "original_max_position_embeddings": 512, "rope_scaling": {"type": "longrope", **FACTORS}, "sliding_window": 2047,
        "pad_token_id": 0, "attention_bias": False,
    },
    "phi4-mini": {
        **COMMON, **SILU, "model_type": "phi3", "partial_rotary_factor": 0.5, "original_max_position_embeddings": 512,
        "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [2.0] * 4}, "pad_token_id": 0,
        "sliding_window": 262144, "tie_word_embeddings": True, "lm_head_bias": False, "mlp_bias": False,
        "full_attn_mod": 1, "interpolate_factor": 1,
    },
    "olmo2": {**COMMON, **SILU, "model_type": "olmo2", "attention_bias": False, "rope_theta": 5e5, "rope_scaling": None},
    "gpt2": {
        "activation_function": "gelu_new", "architectures": ["GPT2LMHeadModel"], "attn_pdrop": 0.1, "bos_token_id": 1,
        "embd_pdrop": 0.1, "eos_token_id": 1, "initializer_range": 0.02, "layer_norm_epsilon": 1e-05, "model_type": "gpt2",
        "n_ctx": 64, "n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 64, "resid_pdrop": 0.1,
        "summary_activation": None, "summary_first_dropout": 0.1, "summary_proj_to_labels": True,
        "summary_type": "cls_index", "summary_use_proj": True, "vocab_size": 300,
        "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}}, "n_special": 0,
        "predict_special_tokens": True, "output_past": True,
    },
    "qwen3 moe": {
        **COMMON, **SILU, "model_type": "qwen3_moe", "decoder_sparse_step": 2, "mlp_only_layers": [3], "num_experts": 8,
        "num_experts_per_tok": 2, "moe_intermediate_size": 48, "norm_topk_prob": True, "output_router_logits": False,
        "router_aux_loss_coef": 0.001, "sliding_window": None, "max_window_layers": 48, "use_sliding_window": False,
        "head_dim": 32, "use_qk_norm": True, "qkv_bias": False, "shared_expert_intermediate_size": 0,
    },
    "mixtral": {
        **COMMON, **SILU, "model_type": "mixtral", "num_experts_per_tok": 2, "num_local_experts": 8, "sliding_window": None,
        "rope_theta": 1e6, "router_aux_loss_coef": 0.02, "output_router_logits": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("name", OLD)
def test_old_and_new_spelling_are_the_same_decoder(name: str) -> None:
    old = OLD[name]
    again = transformers.AutoConfig.for_model(**old).to_dict()
    assert again.get("rope_scaling") is None and ("rope_theta" not in again or old["model_type"] == "gpt2")
    assert read_config(old) == read_config(again)


def test_a_model_of_text_and_pictures_is_served_for_its_text() -> None:
    text = OLD["gemma3 text"]
    whole = {
        "model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}, "eos_token_id": [2, 3],
        "image_token_index": 9, "mm_tokens_per_image": 4,
    }  # fmt: skip
    assert read_config(whole) == read_config(text)


def test_longrope_texts_are_as_long_as_the_first_training_unless_more_is_asked_for() -> None:
    def read(context: int | None) -> tuple[int, float]:
        config: DecoderConfig = read_config(OLD["phi3"], context)
        rope = config.layers[0].rope
        assert rope is not None
        return config.max_position_embeddings, rope.factors[0]

    assert read(None) == (512, 1.0) and read(512) == (512, 1.0) and read(513) == (4096, 4.0)


def test_yarn_lengthens_the_context() -> None:
    long = {**OLD["qwen2.5 with yarn"], "max_position_embeddings": 1024}
    assert read_config(long).max_position_embeddings == 4096
