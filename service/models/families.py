"""The families of decoders that can be served: how their config.json and their tensor names become a DecoderConfig's.

A family is one entry of FAMILIES. Its network is never code of its own: `decoder.py` computes what the config says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from service.models.config_keys import ConfigKeys
from service.models.decoder_config import DecoderConfig, ExpertsConfig
from service.models.diffusion_families import diffusion_families
from service.models.family import POST_NORMS, Family
from service.models.gemma4 import GEMMA4
from service.models.layer_types import always, every_nth, qwen, qwen_moe, read_layers, smollm3

ACTIVATIONS = {
    "silu": "silu", "swish": "silu", "gelu": "gelu", "gelu_new": "gelu_tanh", "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_fast": "gelu_tanh", "relu": "relu",
}  # fmt: skip
def _gemma(keys: ConfigKeys) -> dict[str, Any]:
    keys.skip("hidden_act")
    caps = {"attention_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping"}
    return {
        "attention_scale": keys.number("query_pre_attn_scalar") ** -0.5,
        "embedding_scale": keys.integer("hidden_size") ** 0.5,
        **{name: float(cap) for name, key in caps.items() if (cap := keys.take(key)) is not None},
    }


def _gpt2(keys: ConfigKeys) -> dict[str, Any]:
    return {} if keys.flag("scale_attn_weights", True) else {"attention_scale": 1.0}


def _mixture(count: str, size: str, normalise: Callable[[ConfigKeys], bool]) -> Callable[[ConfigKeys], dict[str, Any]]:
    def experts(keys: ConfigKeys) -> dict[str, Any]:
        number, other = keys.take("num_experts"), keys.take("num_local_experts")
        if not isinstance(number or other, int):
            raise ValueError(f"{count} must be a positive integer, not {number or other!r}")
        return {
            "experts": ExpertsConfig(
                number or other, keys.integer("num_experts_per_tok"), keys.integer(size), normalise(keys)
            )
        }  # fmt: skip

    return experts


def _dense_layers(keys: ConfigKeys, layers: int) -> set[int]:
    """Layers of a mixture's network that have one feed-forward like any other."""
    step, listed = keys.integer("decoder_sparse_step", 1), set(keys.take("mlp_only_layers") or [])
    first = keys.take("first_k_dense_replace") or 0
    return {layer for layer in range(layers) if layer in listed or (layer + 1) % step or layer < first}


_PLAIN = {"qk_norm": "none"}
_GEMMA2 = Family(
    constants={**_PLAIN, "norms": "both"},
    defaults={
        "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "head_dim": 256, "sliding_window": 4096,
        "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "sliding_window_pattern": 2, "num_attention_heads": 8, "num_key_value_heads": 4,
    },
    renamed={"hidden_act": "hidden_activation"},
    layer_types=every_nth("sliding_window_pattern"),
    more=_gemma,
    names=POST_NORMS,
    zero_centred=True,
    ignored_keys=("sliding_window_size",),
)  # fmt: skip
_GEMMA3 = Family(
    constants={"norms": "both"},
    defaults={
        "tie_word_embeddings": True, "query_pre_attn_scalar": 256, "head_dim": 256, "sliding_window": 4096,
        "hidden_activation": "gelu_pytorch_tanh", "max_position_embeddings": 131_072, "sliding_window_pattern": 6,
        "num_attention_heads": 8, "num_key_value_heads": 4, "vocab_size": 262_208, "rope_theta": 1e6,
        "rope_local_base_freq": 1e4,
    },
    renamed=_GEMMA2.renamed,
    layer_types=_GEMMA2.layer_types,
    more=_gemma,
    names=((r"^model\.language_model\.", "model."), (r"^language_model\.", ""), *POST_NORMS),
    ignored=r"rotary_emb\.inv_freq$|vision_tower\.|multi_modal_projector\.",
    zero_centred=True,
)  # fmt: skip

FAMILIES: dict[str, Family] = {
    "llama": Family(_PLAIN),
    "mistral": Family(_PLAIN, {"sliding_window": 4096, "max_position_embeddings": 131_072}, layer_types=always),
    "qwen2": Family({**_PLAIN, "qkv_bias": True}, {"max_window_layers": 28, "sliding_window": 4096}, layer_types=qwen),
    "qwen3": Family({}, {"head_dim": 128, "max_window_layers": 28, "sliding_window": 4096}, layer_types=qwen),
    "smollm3": Family(
        _PLAIN,
        {"tie_word_embeddings": True, "rope_theta": 2e6, "num_key_value_heads": 4, "no_rope_layer_interval": 4},
        layer_types=smollm3,
    ),
    "gemma2": _GEMMA2,
    "gemma3_text": _GEMMA3,
    "phi3": Family(
        _PLAIN, {"rms_norm_eps": 1e-5, "max_position_embeddings": 4096}, layer_types=always,
        ignored_keys=("full_attn_mod", "interpolate_factor"),
    ),
    "olmo2": Family({"qk_norm": "full", "norms": "post"}, {"rms_norm_eps": 1e-5}, names=POST_NORMS),
    "gpt2": Family(
        constants={
            **_PLAIN, "norm": "layer", "qkv_bias": True, "attention_output_bias": True, "mlp_bias": True, "gated": False,
            "learned_positions": True,
        },
        defaults={
            "tie_word_embeddings": True, "n_positions": 1024, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new",
        },
        renamed={
            "hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head",
            "intermediate_size": "n_inner", "max_position_embeddings": "n_positions", "rms_norm_eps": "layer_norm_epsilon",
            "hidden_act": "activation_function",
        },
        more=_gpt2,
        names=(
            (r"^transformer\.", ""), (r"^h\.", "model.layers."), (r"^wte", "model.embed_tokens"),
            (r"^wpe", "model.embed_positions"), (r"^ln_f", "model.norm"), (r"\.ln_1", ".input_layernorm"),
            (r"\.ln_2", ".post_attention_layernorm"), (r"attn\.c_attn", "self_attn.qkv_proj"),
            (r"\.attn\.c_proj", ".self_attn.o_proj"), (r"mlp\.c_fc", "mlp.up_proj"), (r"mlp\.c_proj", "mlp.down_proj"),
        ),
        ignored=r"\.attn\.(masked_)?bias$",
        transposed=r"\.c_(attn|proj|fc)\.weight$",
        ignored_keys=("n_special", "output_past", "predict_special_tokens"),
    ),
    "qwen3_moe": Family(
        ignored_keys=("use_qk_norm",),
        defaults={"head_dim": None, "sliding_window": 4096, "intermediate_size": 6144},
        layer_types=qwen_moe,
        more=_mixture("num_experts", "moe_intermediate_size", lambda keys: keys.flag("norm_topk_prob")),
    ),
    "mixtral": Family(
        _PLAIN,
        {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 131_072, "num_key_value_heads": 8},
        layer_types=always,
        more=_mixture("num_local_experts", "intermediate_size", lambda keys: True),
        names=((r"block_sparse_moe", "mlp"), (r"\.w1\.", ".gate_proj."), (r"\.w3\.", ".up_proj."), (r"\.w2\.", ".down_proj.")),
    ),
}  # fmt: skip
FAMILIES["gemma3"] = replace(_GEMMA3, inside="text_config")
FAMILIES |= {"gemma4_text": GEMMA4, "gemma4": replace(GEMMA4, inside="text_config")}
FAMILIES |= diffusion_families(FAMILIES)



def read_config(json: Mapping[str, Any], context: int | None = None) -> DecoderConfig:
    """From a Hugging Face `config.json`, in the spelling of transformers 4 or 5.

    `context`: the longest text that will be served, for position embeddings that depend on it. Raises ValueError, naming
    the key and its value, for anything that the decoder does not compute.
    """
    family = FAMILIES.get(str(json.get("model_type")))
    if family is None:
        raise ValueError(f"model_type {json.get('model_type')!r} is not supported; supported: {', '.join(FAMILIES)}")
    text = json
    if family.inside is not None:
        inner = json.get(family.inside)
        if not isinstance(inner, Mapping):
            raise ValueError(f"{family.inside} must be an object")
        text = {**{key: json[key] for key in ("eos_token_id", "bos_token_id", "canvas_length") if key in json}, **inner}
    keys = ConfigKeys(text, family.defaults, family.renamed)
    count, heads = keys.integer("num_hidden_layers"), keys.integer("num_attention_heads")
    hidden = keys.integer("hidden_size")
    head_dim = keys.integer("head_dim", hidden // heads)
    more = family.more(keys)
    for key in family.ignored_keys:
        keys.skip(key)
    rotary = not family.constants.get("learned_positions", False)
    layers, positions = read_layers(keys, family.layer_types, count, head_dim, rotary, context)
    if "experts" in more:
        dense = _dense_layers(keys, count)
        layers = [replace(layer, experts=i not in dense) for i, layer in enumerate(layers)]
    extras, eos = keys.mapping("stride"), keys.take("eos_token_id")
    bias = keys.flag("attention_bias")
    fields: dict[str, Any] = {
        "vocab_size": keys.integer("vocab_size"),
        "hidden_size": hidden,
        "intermediate_size": keys.integer("intermediate_size", 4 * hidden),
        "num_hidden_layers": count,
        "num_attention_heads": heads,
        "num_key_value_heads": keys.integer("num_key_value_heads", heads),
        "head_dim": head_dim,
        "rope_theta": layers[0].rope.theta if layers[0].rope else 10_000.0,
        "norm_eps": keys.number("rms_norm_eps", 1e-6),
        "tie_word_embeddings": keys.flag("tie_word_embeddings"),
        "sliding_window": layers[0].window if len({layer.window for layer in layers}) == 1 else None,
        "max_position_embeddings": positions,
        "mask_token_id": extras.get("mask_token_id"),
        "block_lengths": tuple(extras.get("block_lengths", ())),
        "eos_token_id": eos[0] if isinstance(eos, list) else eos,
        "bos_token_id": keys.take("bos_token_id"),
        "layers": tuple(layers),
        "activation": keys.one_of("hidden_act", ACTIVATIONS, "silu"),
        "qkv_bias": bias,
        "attention_output_bias": bias,
        "mlp_bias": keys.flag("mlp_bias"),
    }
    keys.finish()
    return DecoderConfig(**{**fields, **family.constants, **more})
