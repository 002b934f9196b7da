"""Small random checkpoints of diffusion language models in their published layouts, each with an independent reference.

The configs are those of the hub but for their sizes; the networks are transformers' of the family that the layout comes
from, given the attention mask of the diffusion model.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

VOCABULARY, MASK = 300, 299
HARMLESS = {"attention_dropout": 0.0, "initializer_range": 0.02, "torch_dtype": "bfloat16", "use_cache": False}
SDAR: dict[str, Any] = {
    **HARMLESS, "architectures": ["SDARForCausalLM"], "model_type": "sdar", "attention_bias": False,
    "attn_implementation": "flex_attention", "bos_token_id": 1, "debug": False, "eos_token_id": 2, "block_size": 4,
    "mask_token_id": MASK, "ep_size": 1, "fuse_cross_entropy": True, "head_dim": 16, "hidden_act": "silu",
    "hidden_size": 48, "intermediate_size": 80, "max_position_embeddings": 256, "max_window_layers": 3,
    "micro_forward": False, "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2,
    "rms_norm_eps": 1e-6, "rope_scaling": None, "rope_theta": 1000000, "skip_checkpoint": False, "sliding_window": None,
    "tie_word_embeddings": False, "transformers_version": "4.52.4", "use_deepep": False, "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}  # fmt: skip
FAST_DLLM: dict[str, Any] = {
    **HARMLESS, "architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen", "bd_size": 8,
    "bos_token_id": 1, "eos_token_id": 2, "mask_token_id": MASK, "hidden_act": "silu", "hidden_size": 48,
    "intermediate_size": 80, "layer_types": ["full_attention"] * 3, "max_position_embeddings": 256, "max_window_layers": 3,
    "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "rms_norm_eps": 1e-6, "rope_scaling": None,
    "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": True, "use_sliding_window": False,
    "vocab_size": VOCABULARY,
}  # fmt: skip

DREAM: dict[str, Any] = {
    **HARMLESS, "architectures": ["DreamModel"], "auto_map": {"AutoConfig": "configuration_dream.DreamConfig"},
    "bos_token_id": 1, "eos_token_id": 2, "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80,
    "mask_token_id": MASK, "max_position_embeddings": 256, "max_window_layers": 3, "model_type": "Dream",
    "num_attention_heads": 4, "num_hidden_layers": 3, "num_key_value_heads": 2, "pad_token_id": 2, "rms_norm_eps": 1e-6,
    "rope_scaling": None, "rope_theta": 1000000.0, "sliding_window": None, "tie_word_embeddings": False,
    "use_sliding_window": False, "vocab_size": VOCABULARY,
}  # fmt: skip
LLADA: dict[str, Any] = {
    **HARMLESS, "activation_type": "silu", "alibi": False, "alibi_bias_max": 8.0, "architectures": ["LLaDAModelLM"],
    "attention_layer_norm": False, "attention_layer_norm_with_affine": True, "bias_for_layer_norm": False,
    "block_group_size": 1, "block_type": "llama", "d_model": 48, "embedding_dropout": 0.0, "embedding_size": VOCABULARY,
    "eos_token_id": 2, "flash_attention": True, "flash_attn_varlen": True, "include_bias": False,
    "include_qkv_bias": False, "init_cutoff_factor": None, "init_device": "meta", "init_fn": "mitchell", "init_std": 0.02,
    "input_emb_norm": False, "layer_norm_type": "rms", "layer_norm_with_affine": True, "mask_token_id": MASK,
    "max_sequence_length": 256, "mlp_hidden_size": 80, "mlp_ratio": 4, "model_type": "llada",
    "multi_query_attention": None, "n_heads": 4, "n_kv_heads": 4, "n_layers": 3, "pad_token_id": 2,
    "precision": "amp_bf16", "residual_dropout": 0.0, "rms_norm_eps": 1e-5, "rope": True, "rope_full_precision": True,
    "rope_theta": 500000.0, "scale_logits": False, "transformers_version": "4.51.2", "vocab_size": VOCABULARY,
    "weight_tying": False,
}  # fmt: skip
LLADA2: dict[str, Any] = {
    **HARMLESS, "architectures": ["LLaDA2MoeModelLM"], "model_type": "llada2_moe", "mask_token_id": MASK, "block_size": 8,
    "first_k_dense_replace": 1, "head_dim": 16, "hidden_act": "silu", "hidden_size": 48, "intermediate_size": 80,
    "max_position_embeddings": 256, "moe_intermediate_size": 24, "n_group": 4, "norm_head": False, "norm_topk_prob": True,
    "num_attention_heads": 4, "num_experts": 16, "num_experts_per_tok": 3, "num_hidden_layers": 3, "num_key_value_heads": 2,
    "num_shared_experts": 1, "output_router_logits": False, "pad_token_id": 2, "partial_rotary_factor": 0.5,
    "rms_norm_eps": 1e-6, "rope_theta": 600000, "routed_scaling_factor": 2.5, "score_function": "sigmoid",
    "tie_word_embeddings": False, "topk_group": 2, "vocab_size": VOCABULARY,
}  # fmt: skip
_LLADA2_NAMES = {
    "embed_tokens": "word_embeddings", "self_attn.o_proj": "attention.dense", "self_attn.q_norm": "attention.query_layernorm",
    "self_attn.k_norm": "attention.key_layernorm", "gate.e_score_correction_bias": "gate.expert_bias",
}  # fmt: skip
_LLADA_NAMES = {
    "model.embed_tokens": "wte", "model.norm": "ln_f", "lm_head": "ff_out", "model.layers": "blocks",
    "self_attn.o_proj": "attn_out",
    "self_attn.": "", "input_layernorm": "attn_norm", "post_attention_layernorm": "ff_norm", "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj", "mlp.down_proj": "ff_out",
}  # fmt: skip


def _as_llada(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    published: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        for own, theirs in _LLADA_NAMES.items():
            name = name.replace(own, theirs)
        published[f"model.transformer.{name}"] = tensor
    return published


def _as_llada2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Queries, keys and values in one matrix, and each expert's matrices apart."""
    published: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        if "self_attn.q_proj" in name:
            parts = [tensors[name.replace("q_proj", part)] for part in ("q_proj", "k_proj", "v_proj")]
            published[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif name.endswith("experts.gate_up_proj"):
            for i, (gate, up) in enumerate(one.chunk(2) for one in tensor):
                base = name.replace("gate_up_proj", str(i))
                published |= {f"{base}.gate_proj.weight": gate, f"{base}.up_proj.weight": up}
        elif name.endswith("experts.down_proj"):
            published |= {name.replace("down_proj", f"{i}.down_proj.weight"): one for i, one in enumerate(tensor)}
        elif "self_attn.k_proj" not in name and "self_attn.v_proj" not in name:
            for own, theirs in _LLADA2_NAMES.items():
                name = name.replace(own, theirs)
            published[name] = tensor
    return published


@dataclass(frozen=True)
class Layout:
    """`config` is the published config.json in small; `reference` the class in transformers and what its config has other
    than `config`; `published` turns its tensors into the checkpoint's."""

    config: Mapping[str, Any]
    reference: str
    differing: Mapping[str, Any] = field(default_factory=dict)
    published: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] = lambda tensors: tensors


LAYOUTS = {
    "sdar": Layout(SDAR, "Qwen3"),
    "sdar-tied-blocks-of-8": Layout({**SDAR, "block_size": 8, "tie_word_embeddings": True}, "Qwen3"),
    "fast_dllm": Layout(FAST_DLLM, "Qwen2"),
    "llada2": Layout(
        LLADA2, "Glm4Moe",
        {
            "moe_intermediate_size": 24, "num_experts_per_tok": 3, "n_routed_experts": 16, "n_group": 4, "topk_group": 2,
            "routed_scaling_factor": 2.5, "use_qk_norm": True, "first_k_dense_replace": 1, "n_shared_experts": 1,
            "rope_parameters": {"rope_type": "default", "rope_theta": 6e5, "partial_rotary_factor": 0.5},
        },
        _as_llada2,
    ),
    "dream": Layout(DREAM, "Qwen2"),
    "llada": Layout(
        LLADA, "Llama",
        {
            "hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4,
            "num_key_value_heads": 4, "max_position_embeddings": 256,
        },
        _as_llada,
    ),
}  # fmt: skip
_SAME = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "head_dim", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings",
)  # fmt: skip


def write_layout(folder: Path, name: str, seed: int = 0) -> Any:
    """Writes config.json and model.safetensors and returns the reference network, in float32."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    import transformers

    layout = LAYOUTS[name]
    same = {key: layout.config[key] for key in _SAME if key in layout.config}
    config = getattr(transformers, f"{layout.reference}Config")(**{**same, **layout.differing})
    network = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in [*network.parameters(), *(b for name, b in network.named_buffers() if "correction" in name)]:
            # Biases and norms that matter, and distributions that depend on the text.
            spread = 0.3 if parameter.ndim < 2 else 1.5 * parameter.shape[-1] ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * spread + (0.0 if parameter.ndim > 1 else 0.7))
    tied = layout.config.get("tie_word_embeddings", False)
    own = {name: tensor for name, tensor in network.state_dict().items() if not (tied and name == "lm_head.weight")}
    tensors = {name: tensor.clone().contiguous() for name, tensor in layout.published(own).items()}
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(layout.config))
    return network


def logits_of(network: Any, tokens: list[int], span: int) -> Tensor:
    """[N, V] of a text in which each `span` tokens see one another and all before them."""
    own = torch.arange(len(tokens)) // span
    hidden = torch.where(own[:, None] >= own[None], 0.0, float("-inf"))
    with torch.no_grad():
        return network(torch.tensor([tokens]), attention_mask=hidden[None, None]).logits[0]
