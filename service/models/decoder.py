"""The decoder-only transformer over packed tokens: one implementation, and a DecoderConfig that says which one it is.

The network knows nothing about batches, caches or masks: it sees N tokens with their positions and hands queries, keys
and values to an `Attention`. Training passes dense masks, the server a paged cache; the weights and the arithmetic are
the same. Tensor names are Qwen3's, and for what Qwen3 lacks, names of the same kind. Reference: transformers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.decoder_config import DecoderConfig
from service.models.normalisation import LayerNorm, RMSNorm
from service.models.rope import rotary_angles, rotate

__all__ = ["Attention", "Decoder", "DecoderConfig", "DecoderLayer", "Experts", "FeedForward", "SelfAttention"]

Angles = tuple[Tensor, Tensor]


class Attention(Protocol):
    """Attention over whatever keys the caller keeps: it owns scaling, soft-capping, masking, windows and caching."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [N, Hq, D], key and value [N, Hkv, D], after q/k norm and RoPE -> [N, Hq, D]."""
        ...


ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "gelu": F.gelu,
    "gelu_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
}


def softcapped(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap): near x while it is small, never beyond the cap (Gemma 2, arXiv 2408.00118)."""
    return x if cap is None else torch.tanh(x / cap) * cap


def _stacked(*layers: nn.Linear) -> nn.Linear:
    """One layer whose outputs are those of `layers`, one after another."""
    rows, biased = sum(layer.out_features for layer in layers), layers[0].bias is not None
    stacked = nn.Linear(layers[0].in_features, rows, bias=biased, device="meta").requires_grad_(False)
    # Without numbers there is nothing to stack, and torch imports its whole compiler for a `cat` of such tensors.
    if not layers[0].weight.is_meta:
        stacked.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        if biased:
            stacked.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return stacked


def _embedding(rows: int, size: int) -> nn.Embedding:
    """Without numbers of its own: on the meta device torch imports its whole compiler to draw them."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size), freeze=False)


def _norm(config: DecoderConfig, size: int) -> nn.Module:
    return RMSNorm(size, config.norm_eps) if config.norm == "rms" else LayerNorm(size, config.norm_eps)


class SelfAttention(nn.Module):
    """Grouped-query attention; `fuse` makes one matrix of q, k and v. `sizes`: heads of each; `rope`: index into the
    decoder's `ropes`, or None."""

    qkv_proj: nn.Linear | None

    def __init__(self, config: DecoderConfig, layer: int, rope: int | None) -> None:
        super().__init__()
        self.layer = layer
        self.rope = rope
        self.sizes = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
        self.head_dim = config.head_dim
        self.qk_norm = config.qk_norm
        queries, keys = config.num_attention_heads * config.head_dim, config.num_key_value_heads * config.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_output_bias)
        if config.qk_norm != "none":
            full = config.qk_norm == "full"
            self.q_norm = RMSNorm(queries if full else config.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(keys if full else config.head_dim, config.norm_eps)
        self.qkv_proj = None

    def fuse(self) -> None:
        if self.qkv_proj is not None:
            return
        self.qkv_proj = _stacked(self.q_proj, self.k_proj, self.v_proj)
        del self.q_proj, self.k_proj, self.v_proj

    def forward(self, x: Tensor, angles: list[Angles], attention: Attention) -> Tensor:
        if self.qkv_proj is None:
            projected = (self.q_proj(x), self.k_proj(x), self.v_proj(x))
            query, key, value = (part.view(x.shape[0], -1, self.head_dim) for part in projected)
        else:
            query, key, value = self.qkv_proj(x).view(x.shape[0], -1, self.head_dim).split(self.sizes, dim=1)
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        elif self.qk_norm == "full":
            query = self.q_norm(query.flatten(1)).view(query.shape)
            key = self.k_norm(key.flatten(1)).view(key.shape)
        if self.rope is not None:
            query, key = rotate(query, *angles[self.rope]), rotate(key, *angles[self.rope])
        return self.o_proj(attention(self.layer, query, key, value).reshape(x.shape[0], -1))


class FeedForward(nn.Module):
    """Two matrices with an activation between, or three with a gate (arXiv 2002.05202), of which `fuse` makes gate and
    up one."""

    gate_up_proj: nn.Linear | None

    def __init__(self, config: DecoderConfig, size: int) -> None:
        super().__init__()
        self.gated = config.gated
        self.activation = config.activation
        if config.gated:
            self.gate_proj = nn.Linear(config.hidden_size, size, bias=config.mlp_bias)
        self.up_proj = nn.Linear(config.hidden_size, size, bias=config.mlp_bias)
        self.down_proj = nn.Linear(size, config.hidden_size, bias=config.mlp_bias)
        self.gate_up_proj = None

    def fuse(self) -> None:
        if self.gate_up_proj is not None or not self.gated:
            return
        self.gate_up_proj = _stacked(self.gate_proj, self.up_proj)
        del self.gate_proj, self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        if not self.gated:
            return self.down_proj(activation(self.up_proj(x)))
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            gate, up = self.gate_up_proj(x).chunk(2, dim=-1)
        return self.down_proj(activation(gate) * up)


class Experts(nn.Module):
    """A mixture of feed-forward layers (arXiv 1701.06538): every token goes through the few that its router chooses."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        assert config.experts is not None
        self.config = config.experts
        count, size = config.experts.count, config.experts.intermediate_size
        self.gate = nn.Linear(config.hidden_size, count, bias=False)
        self.expert_bias = nn.Parameter(torch.zeros(count)) if config.experts.biased else None
        self.experts = nn.ModuleList(FeedForward(config, size) for _ in range(count))
        self.shared_experts = FeedForward(config, config.experts.shared_size) if config.experts.shared_size else None

    def forward(self, x: Tensor) -> Tensor:
        weights, chosen = self._route(self.gate(x).float())
        weights = weights.to(x.dtype)
        out = torch.zeros_like(x)
        for expert in chosen.unique().tolist():
            rows, places = torch.where(chosen == expert)
            out.index_add_(0, rows, self.experts[expert](x[rows]) * weights[rows, places, None])
        return out if self.shared_experts is None else out + self.shared_experts(x)

    def _route(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """logits float32 [N, count] -> weights and indices [N, per_token] of the experts that each token goes through."""
        scores = logits.softmax(-1) if self.config.scores == "softmax" else logits.sigmoid()
        wanted = scores if self.expert_bias is None else scores + self.expert_bias
        if self.config.groups > 1:
            grouped = wanted.unflatten(-1, (self.config.groups, -1))
            best = grouped.topk(2, dim=-1).values.sum(-1).topk(self.config.chosen_groups, dim=-1).indices
            closed = torch.ones_like(grouped[..., 0], dtype=torch.bool).scatter_(-1, best, False)
            wanted = grouped.masked_fill(closed[..., None], float("-inf")).flatten(-2)
        chosen = wanted.topk(self.config.per_token, dim=-1).indices
        weights = scores.gather(-1, chosen)
        if self.config.normalise:
            weights = weights / weights.sum(-1, keepdim=True).clamp(min=1e-20)
        return weights * self.config.scale, chosen


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each added to the stream. A norm that the family lacks is None: `input_layernorm` and
    `post_attention_layernorm` stand before the two, `attention_output_norm` and `mlp_output_norm` behind them."""

    def __init__(self, config: DecoderConfig, layer: int, rope: int | None, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        before, after = config.norms != "post", config.norms != "pre"
        self.input_layernorm = _norm(config, config.hidden_size) if before else None
        self.self_attn = SelfAttention(config, layer, rope)
        self.attention_output_norm = _norm(config, config.hidden_size) if after else None
        self.post_attention_layernorm = _norm(config, config.hidden_size) if before else None
        self.mlp = Experts(config) if config.layers[layer].experts else FeedForward(config, config.intermediate_size)
        self.mlp_output_norm = _norm(config, config.hidden_size) if after else None

    def forward(self, x: Tensor, angles: list[Angles], attention: Attention) -> Tensor:
        entering = x if self.input_layernorm is None else self.input_layernorm(x)
        branch = self.self_attn(entering, angles, attention)
        branch = branch if self.attention_output_norm is None else self.attention_output_norm(branch)
        x = x + F.dropout(branch, self.dropout, self.training)
        entering = x if self.post_attention_layernorm is None else self.post_attention_layernorm(x)
        branch = self.mlp(entering)
        branch = branch if self.mlp_output_norm is None else self.mlp_output_norm(branch)
        return x + F.dropout(branch, self.dropout, self.training)


class DecoderStack(nn.Module):
    """The part that Qwen3's checkpoints call `model`."""

    def __init__(self, config: DecoderConfig, ropes: list[int | None], dropout: float) -> None:
        super().__init__()
        self.embed_tokens = _embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.embed_positions = _embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, rope, dropout) for i, rope in enumerate(ropes))
        self.norm = _norm(config, config.hidden_size)


class Decoder(nn.Module):
    """A tied head has no tensor of its own. `ropes` are the distinct position embeddings of the layers."""

    def __init__(self, config: DecoderConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.ropes = list(dict.fromkeys(layer.rope for layer in config.layers if layer.rope is not None))
        indices = [None if layer.rope is None else self.ropes.index(layer.rope) for layer in config.layers]
        self.model = DecoderStack(config, indices, dropout)
        if not config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)

    @property
    def dtype(self) -> torch.dtype:
        """Of the matrices that are not quantised, the activations, and keys and values."""
        return self.model.embed_tokens.weight.dtype

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
        return self.states(self.embed(tokens), positions, attention)

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens int64 [N] -> [N, d]; learned positions are not yet in it."""
        x = self.model.embed_tokens(tokens)
        if self.config.embedding_scale != 1.0:
            x = x * torch.tensor(self.config.embedding_scale, dtype=x.dtype, device=x.device)
        return x

    def states(self, x: Tensor, positions: Tensor, attention: Attention) -> Tensor:
        """x [N, d], embeddings or what stands in for them at `positions` int64 [N] -> final normed states [N, d]."""
        angles = [rotary_angles(positions, rope, self.config.head_dim) for rope in self.ropes]
        if self.config.learned_positions:
            x = x + self.model.embed_positions(positions)
        for layer in self.model.layers:
            x = layer(x, angles, attention)
        return self.model.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, d] of the positions that need them -> float32 [M, V]."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return softcapped(F.linear(hidden, head.weight).float(), self.config.logit_softcap)
