"""The decoder-only transformer over packed tokens: one implementation, and a DecoderConfig that says which one it is.

The network knows nothing about batches, caches or masks: it sees N tokens with their positions and hands queries, keys
and values to an `Attention`. Training passes dense masks, the server a paged cache; the weights and the arithmetic are
the same. Tensor names are Qwen3's, and for what Qwen3 lacks, names of the same kind. Reference: transformers.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kernels.kv_write import Projected
from service.models.decoder_config import DecoderConfig
from service.models.feed_forward import Experts, ExpertsBeside, FeedForward, stacked
from service.models.normalisation import RMSNorm, add_and_norm, norm_of
from service.models.rope import rotary_angles, rotate

__all__ = [
    "Attention", "Decoder", "DecoderConfig", "DecoderLayer", "Experts", "ExpertsBeside", "FeedForward", "FusedAttention",
    "SelfAttention", "SelfConditioning",
]  # fmt: skip

Angles = tuple[Tensor, Tensor]


class Attention(Protocol):
    """Attention over whatever keys the caller keeps: it owns scaling, soft-capping, masking, windows and caching."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [N, Hq, D], key and value [N, Hkv, D], after q/k norm and RoPE -> [N, Hq, D]."""
        ...


class FusedAttention(Attention):
    """One that norms and turns by itself, as it writes what it keeps; to be inherited from."""

    @abstractmethod
    def fused(self, layer: int, projected: Projected) -> Tensor:
        """Queries, keys and values as the matrices leave them -> [N, Hq, D]."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        return self.fused(layer, Projected(query, key, value))


def softcapped(x: Tensor, cap: float | None) -> Tensor:
    """cap * tanh(x / cap): near x while it is small, never beyond the cap (Gemma 2, arXiv 2408.00118)."""
    return x if cap is None else torch.tanh(x / cap) * cap


def _embedding(rows: int, size: int) -> nn.Embedding:
    """Without numbers of its own: on the meta device torch imports its whole compiler to draw them."""
    return nn.Embedding.from_pretrained(torch.empty(rows, size), freeze=False)


class SelfAttention(nn.Module):
    """Grouped-query attention; `fuse` makes one matrix of q, k and v. `sizes`: heads of each, 0 values where keys serve as
    such; `rope`: index into the decoder's `ropes`, or None."""

    qkv_proj: nn.Linear | None

    def __init__(self, config: DecoderConfig, layer: int, rope: int | None) -> None:
        super().__init__()
        self.layer = layer
        self.rope = rope
        kv_heads, self.head_dim = config.widths()[layer]
        self.sizes = (config.num_attention_heads, kv_heads, 0 if config.layers[layer].keys_as_values else kv_heads)
        self.qk_norm = config.qk_norm
        queries, keys = config.num_attention_heads * self.head_dim, kv_heads * self.head_dim
        self.q_proj = nn.Linear(config.hidden_size, queries, bias=config.qkv_bias)
        self.k_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias)
        self.v_proj = nn.Linear(config.hidden_size, keys, bias=config.qkv_bias) if self.sizes[2] else None
        self.o_proj = nn.Linear(queries, config.hidden_size, bias=config.attention_output_bias)
        if config.qk_norm != "none":
            full = config.qk_norm == "full"
            self.q_norm = RMSNorm(queries if full else self.head_dim, config.norm_eps)
            self.k_norm = RMSNorm(keys if full else self.head_dim, config.norm_eps)
        self.v_norm = RMSNorm(self.head_dim, config.norm_eps, weighted=False) if config.value_norm else None
        self.norm_eps = config.norm_eps
        self.qkv_proj = None

    def fuse(self) -> None:
        if self.qkv_proj is not None:
            return
        self.qkv_proj = stacked(self.q_proj, self.k_proj, *([] if self.v_proj is None else [self.v_proj]))
        del self.q_proj, self.k_proj, self.v_proj

    def forward(self, x: Tensor, angles: list[Angles], attention: Attention) -> Tensor:
        if self.qkv_proj is None:
            parts = [part(x).view(x.shape[0], -1, self.head_dim) for part in (self.q_proj, self.k_proj, self.v_proj) if part]
        else:
            parts = list(self.qkv_proj(x).view(x.shape[0], -1, self.head_dim).split(self.sizes, dim=1))
        query, key, value = parts[0], parts[1], parts[2] if self.sizes[2] else parts[1]
        if self.qk_norm == "full":
            query = self.q_norm(query.flatten(1)).view(query.shape)
            key = self.k_norm(key.flatten(1)).view(key.shape)
        if isinstance(attention, FusedAttention):
            attended = attention.fused(self.layer, self._projected(query, key, value, angles))
        else:
            attended = attention(self.layer, *self._normed_and_turned(query, key, value, angles))
        return self.o_proj(attended.reshape(x.shape[0], -1))

    def _normed_and_turned(
        self, query: Tensor, key: Tensor, value: Tensor, angles: list[Angles]
    ) -> tuple[Tensor, Tensor, Tensor]:
        if self.qk_norm == "head":
            query, key = self.q_norm(query), self.k_norm(key)
        if self.v_norm is not None:
            value = self.v_norm(value)
        if self.rope is not None:
            query, key = rotate(query, *angles[self.rope]), rotate(key, *angles[self.rope])
        return query, key, value

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, angles: list[Angles]) -> Projected:
        """The same, left to the attention."""
        weights = (self.q_norm.weight, self.k_norm.weight) if self.qk_norm == "head" else (None, None)
        turned = None if self.rope is None else angles[self.rope]
        return Projected(query, key, value, *weights, self.v_norm is not None, self.norm_eps, turned)


class SelfConditioning(nn.Module):
    """What a canvas' tokens are joined with what was last said of them (arXiv 2208.04202, as DiffusionGemma does it)."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.pre_norm = RMSNorm(config.hidden_size, config.norm_eps)
        self.mlp = FeedForward(config, config.intermediate_size)
        self.post_norm = RMSNorm(config.hidden_size, config.norm_eps, weighted=False)

    def forward(self, x: Tensor, mixed: Tensor) -> Tensor:
        """Embeddings of the canvas, and those of its last distributions (their mean; 0 in a first forward), [N, d] -> [N, d]."""
        return self.post_norm(x + self.mlp(self.pre_norm(mixed)))


class DecoderLayer(nn.Module):
    """Attention and feed-forward, each added to the stream. A norm that the family lacks is None: `input_layernorm` and
    `post_attention_layernorm` stand before the two, `attention_output_norm` and `mlp_output_norm` behind them."""

    def __init__(self, config: DecoderConfig, layer: int, rope: int | None, dropout: float) -> None:
        super().__init__()
        self.dropout = dropout
        before, after = config.norms != "post", config.norms != "pre"
        self.input_layernorm = norm_of(config) if before else None
        self.self_attn = SelfAttention(config, layer, rope)
        self.attention_output_norm = norm_of(config) if after else None
        self.post_attention_layernorm = norm_of(config) if before else None
        mixture = config.experts if config.layers[layer].experts else None
        dense = mixture is None or mixture.beside
        self.mlp = FeedForward(config, config.intermediate_size) if dense else Experts(config)
        self.beside = ExpertsBeside(config) if mixture is not None and mixture.beside else None
        self.mlp_output_norm = norm_of(config) if after else None
        self.layer_scalar = nn.Parameter(torch.ones(1)) if config.layer_scales else None
        self.canvas_scalar = nn.Parameter(torch.ones(1)) if config.layer_scales == 2 else None

    def forward(
        self, x: Tensor, branch: Tensor | None, angles: list[Angles], attention: Attention, canvas: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """The stream and what the layer before has still to add to it (None: nothing), both [N, d] -> the same behind this
        layer: a sum and the norm that follows it are one pass. `canvas` bool [N]: which tokens are a canvas' (None: none is)."""
        entering, x = add_and_norm(self.input_layernorm, x, branch)
        branch = self.self_attn(entering, angles, attention)
        branch = branch if self.attention_output_norm is None else self.attention_output_norm(branch)
        entering, x = add_and_norm(self.post_attention_layernorm, x, F.dropout(branch, self.dropout, self.training))
        branch = self.mlp(entering)
        branch = branch if self.beside is None else self.beside(x, branch)
        branch = branch if self.mlp_output_norm is None else self.mlp_output_norm(branch)
        branch = F.dropout(branch, self.dropout, self.training)
        if self.layer_scalar is None:
            return x, branch
        if self.canvas_scalar is None or canvas is None:
            return (x + branch) * self.layer_scalar.to(x.dtype), None
        return (x + branch) * torch.where(canvas[:, None], self.canvas_scalar, self.layer_scalar).to(x.dtype), None


class DecoderStack(nn.Module):
    """The part that Qwen3's checkpoints call `model`."""

    def __init__(self, config: DecoderConfig, ropes: list[int | None], dropout: float) -> None:
        super().__init__()
        self.embed_tokens = _embedding(config.vocab_size, config.hidden_size)
        if config.learned_positions:
            self.embed_positions = _embedding(config.max_position_embeddings, config.hidden_size)
        self.layers = nn.ModuleList(DecoderLayer(config, i, rope, dropout) for i, rope in enumerate(ropes))
        self.norm = norm_of(config)
        if config.self_conditioning:
            self.self_conditioning = SelfConditioning(config)


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
            x = x * torch.full((), self.config.embedding_scale, dtype=x.dtype, device=x.device)
        return x

    def mixed(self, probabilities: Tensor) -> Tensor:
        """Embeddings of distributions over tokens, [N, V] -> [N, d]: their mean."""
        weight = self.model.embed_tokens.weight
        scale = torch.full((), self.config.embedding_scale, dtype=weight.dtype, device=weight.device)
        return probabilities.to(weight.dtype) @ weight * scale

    def states(self, x: Tensor, positions: Tensor, attention: Attention, canvas: Tensor | None = None) -> Tensor:
        """x [N, d], embeddings or what stands in for them at `positions` int64 [N] -> final normed states [N, d]. `canvas`
        bool [N]: which of them are a canvas', for networks in which that makes a difference."""
        angles = [rotary_angles(positions, rope, self.config.head_dim) for rope in self.ropes]
        if self.config.learned_positions:
            x = x + self.model.embed_positions(positions)
        branch: Tensor | None = None
        for layer in self.model.layers:
            x, branch = layer(x, branch, angles, attention, canvas)
        return add_and_norm(self.model.norm, x, branch)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [M, d] of the positions that need them -> float32 [M, V]."""
        head = self.model.embed_tokens if self.config.tie_word_embeddings else self.lm_head
        return softcapped(F.linear(hidden, head.weight).float(), self.config.logit_softcap)
