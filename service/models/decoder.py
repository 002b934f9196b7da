"""The decoder-only transformer, in Qwen3's architecture and tensor names, over packed tokens.

The network knows nothing about batches, caches or masks: it sees N tokens with their positions and hands queries, keys
and values to an `Attention`. Training passes dense masks, the server a paged cache; the weights and the arithmetic are
the same. Reference: transformers' Qwen3ForCausalLM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Attention(Protocol):
    """Attention over whatever keys the caller keeps: it owns scaling, masking, windows and caching."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [N, Hq, D], key and value [N, Hkv, D], after q/k norm and RoPE -> [N, Hq, D]."""
        ...


@dataclass(frozen=True)
class DecoderConfig:
    """Shape and constants of a decoder; `stride` extras say how it was trained for block diffusion."""

    vocab_size: int
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float = 10_000.0
    rms_norm_eps: float = 1e-6
    tie_word_embeddings: bool = True
    sliding_window: int | None = None
    max_position_embeddings: int = 2048
    mask_token_id: int | None = None
    block_lengths: tuple[int, ...] = ()
    eos_token_id: int | None = None
    bos_token_id: int | None = None

    def __post_init__(self) -> None:
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("num_attention_heads must be a multiple of num_key_value_heads")
        if self.block_lengths and self.mask_token_id is None:
            raise ValueError("block_lengths need a mask_token_id")

    @classmethod
    def from_json(cls, json: Mapping[str, Any]) -> DecoderConfig:
        """From a Hugging Face `config.json` of a Qwen3 model; raises ValueError on what this decoder does not compute."""
        if json.get("model_type") != "qwen3":
            raise ValueError(f"model_type must be 'qwen3', not {json.get('model_type')!r}")
        rope = json.get("rope_parameters") or json.get("rope_scaling") or {}
        if rope.get("rope_type", rope.get("type", "default")) != "default":
            raise ValueError(f"rope type {rope.get('rope_type')!r} is not supported")
        if json.get("hidden_act", "silu") != "silu" or json.get("attention_bias", False):
            raise ValueError("only hidden_act 'silu' without attention_bias is supported")
        window = json.get("sliding_window") if json.get("use_sliding_window", False) else None
        if window is not None and json.get("max_window_layers", 0) > 0 and "layer_types" not in json:
            raise ValueError("sliding windows on some of the layers only (max_window_layers > 0) are not supported")
        if window is not None and set(json.get("layer_types") or ["sliding_attention"]) != {"sliding_attention"}:
            raise ValueError("mixed layer_types are not supported")
        extras = json.get("stride") or {}
        heads = json["num_attention_heads"]
        eos = json.get("eos_token_id")
        return cls(
            vocab_size=json["vocab_size"],
            hidden_size=json["hidden_size"],
            intermediate_size=json["intermediate_size"],
            num_hidden_layers=json["num_hidden_layers"],
            num_attention_heads=heads,
            num_key_value_heads=json.get("num_key_value_heads") or heads,
            head_dim=json.get("head_dim") or json["hidden_size"] // heads,
            rope_theta=float(rope.get("rope_theta", json.get("rope_theta", 10_000.0))),
            rms_norm_eps=json.get("rms_norm_eps", 1e-6),
            tie_word_embeddings=json.get("tie_word_embeddings", False),
            sliding_window=window,
            max_position_embeddings=json.get("max_position_embeddings", 32_768),
            mask_token_id=extras.get("mask_token_id"),
            block_lengths=tuple(extras.get("block_lengths", ())),
            eos_token_id=eos[0] if isinstance(eos, list) else eos,
            bos_token_id=json.get("bos_token_id"),
        )

    def to_json(self) -> dict[str, Any]:
        """The `config.json` that transformers' Qwen3ForCausalLM and `from_json` read."""
        layer_type = "full_attention" if self.sliding_window is None else "sliding_attention"
        return {
            "architectures": ["Qwen3ForCausalLM"],
            "model_type": "qwen3",
            "vocab_size": self.vocab_size,
            "hidden_size": self.hidden_size,
            "intermediate_size": self.intermediate_size,
            "num_hidden_layers": self.num_hidden_layers,
            "num_attention_heads": self.num_attention_heads,
            "num_key_value_heads": self.num_key_value_heads,
            "head_dim": self.head_dim,
            "hidden_act": "silu",
            "attention_bias": False,
            "attention_dropout": 0.0,
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.rms_norm_eps,
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_sliding_window": self.sliding_window is not None,
            "sliding_window": self.sliding_window,
            "max_window_layers": 0 if self.sliding_window is not None else self.num_hidden_layers,
            "layer_types": [layer_type] * self.num_hidden_layers,
            "max_position_embeddings": self.max_position_embeddings,
            "bos_token_id": self.bos_token_id,
            "eos_token_id": self.eos_token_id,
            "torch_dtype": "float16",
            "stride": {"mask_token_id": self.mask_token_id, "block_lengths": list(self.block_lengths)},
        }


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last dimension, the sum in float32 (arXiv 1910.07467)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        wide = x.float()
        normed = wide * (wide.square().mean(-1, keepdim=True) + self.eps).rsqrt()
        return normed.to(x.dtype) * self.weight.to(x.dtype)


def rotary_angles(positions: Tensor, head_dim: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and sin [N, 1, D] in float32 for positions [N]; the halves are paired as in Qwen and Llama (arXiv 2104.09864).

    The sines of the first half are negative: `rotate` then only has to swap the halves.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.float()[:, None, None] * theta**-exponents
    cos, sin = angles.cos(), angles.sin()
    return torch.cat((cos, cos), dim=-1), torch.cat((-sin, sin), dim=-1)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of x [N, H, D] by the angles of `rotary_angles`."""
    low, high = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos.to(x.dtype), torch.cat((high, low), dim=-1), sin.to(x.dtype))


def _stacked(*layers: nn.Linear) -> nn.Linear:
    """One layer whose outputs are those of `layers`, one after another."""
    weight = torch.cat([layer.weight for layer in layers])
    stacked = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    stacked.weight = nn.Parameter(weight, requires_grad=False)
    return stacked


class SelfAttention(nn.Module):
    """Grouped-query attention with q/k norm and RoPE; `fuse` makes one matrix of q, k and v."""

    qkv_proj: nn.Linear | None

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.sizes = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.head_dim = config.head_dim
        queries = config.num_attention_heads * config.head_dim
        keys = config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=False)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=False)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=False)
        self.q_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.k_norm = RMSNorm(config.head_dim, config.rms_norm_eps)
        self.qkv_proj = None

    def fuse(self) -> None:
        if self.qkv_proj is not None:
            return
        self.qkv_proj = _stacked(self.q_proj, self.k_proj, self.v_proj)
        del self.q_proj, self.k_proj, self.v_proj

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        if self.qkv_proj is None:
            projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
            query, key, value = (part.view(x.shape[0], -1, self.head_dim) for part in projected)
        else:
            query, key, value = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim).split(self.sizes, dim=1)
        query = rotate(self.q_norm(query), cos, sin)
        key = rotate(self.k_norm(key), cos, sin)
        return self.o_proj(attention(self.layer, query, key, value).reshape(x.shape[0], -1))


class FeedForward(nn.Module):
    """SwiGLU (arXiv 2002.05202); `fuse` makes one matrix of gate and up."""

    gate_up_proj: nn.Linear | None

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)
        self.gate_up_proj = None

    def fuse(self) -> None:
        if self.gate_up_proj is not None:
            return
        self.gate_up_proj = _stacked(self.gate_proj, self.up_proj)
        del self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(F.silu(gate) * up)


class DecoderLayer(nn.Module):
    def __init__(self, config: DecoderConfig, layer: int, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = SelfAttention(config, layer)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attention: Attention) -> Tensor:
        attended = self.self_attn(self.input_layernorm(x), cos, sin, attention)
        x = x + F.dropout(attended, self.dropout, self.training)
        return x + F.dropout(self.mlp(self.post_attention_layernorm(x)), self.dropout, self.training)


class DecoderStack(nn.Module):
    """The part that Qwen3's checkpoints call `model`."""

    def __init__(self, config: DecoderConfig, dropout: float) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, dropout) for i in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)


class Decoder(nn.Module):
    """Qwen3 decoder. State-dict names are Qwen3's; a tied head has no tensor of its own."""

    def __init__(self, config: DecoderConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.model = DecoderStack(config, dropout)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    def initialise(self, generator: torch.Generator) -> None:
        """Fresh weights: normal(0, 0.02) embeddings, 1/sqrt(fan-in) matrices, residual outputs scaled by depth."""
        depth_scale = (2 * self.config.num_hidden_layers) ** -0.5
        with torch.no_grad():
            for name, parameter in self.named_parameters():
                if parameter.ndim < 2:
                    parameter.fill_(1.0)
                    continue
                std = 0.02 if "embed" in name else parameter.shape[1] ** -0.5
                if name.endswith(("o_proj.weight", "down_proj.weight")):
                    std *= depth_scale
                parameter.normal_(0.0, std, generator=generator)

    def fuse(self) -> None:
        """Stack matrices that share an input, for serving: fewer, larger products. The tensor names are no longer Qwen3's."""
        for module in self.modules():
            if isinstance(module, SelfAttention | FeedForward):
                module.fuse()

    def hidden(self, tokens: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """tokens and positions int64 [N], packed in whatever order `attention` expects -> final normed states [N, d]."""
        cos, sin = rotary_angles(positions, self.config.head_dim, self.config.rope_theta)
        x = self.model.embed_tokens(tokens)
        for layer in self.model.layers:
            x = layer(x, cos, sin, attention)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, d] of the positions that need them -> float32 [M, V]."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return F.linear(hidden, head.weight).float()
