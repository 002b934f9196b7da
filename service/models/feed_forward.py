"""What a layer does to each token by itself: feed-forward layers, one or a mixture of many, also beside one another."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from kernels.fusing import fuses
from kernels.swiglu import ACTIVATIONS, gated
from service.models.decoder_config import DecoderConfig
from service.models.grouped_experts import GroupedExperts
from service.models.normalisation import RMSNorm, norm_of


def stacked(*layers: nn.Linear) -> nn.Linear:
    """One layer whose outputs are those of `layers`, one after another."""
    rows, biased = sum(layer.out_features for layer in layers), layers[0].bias is not None
    stacked = nn.Linear(layers[0].in_features, rows, bias=biased, device="meta").requires_grad_(False)
    # Without numbers there is nothing to stack, and torch imports its whole compiler for a `cat` of such tensors.
    if not layers[0].weight.is_meta:
        stacked.weight = nn.Parameter(torch.cat([layer.weight for layer in layers]), requires_grad=False)
        if biased:
            stacked.bias = nn.Parameter(torch.cat([layer.bias for layer in layers]), requires_grad=False)
    return stacked


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
        self.gate_up_proj = stacked(self.gate_proj, self.up_proj)
        del self.gate_proj, self.up_proj

    @property
    def entering(self) -> nn.Module | None:
        """The one matrix before the activation; None where there are two."""
        return self.gate_up_proj if self.gated else self.up_proj

    def forward(self, x: Tensor) -> Tensor:
        activation = ACTIVATIONS[self.activation]
        if not self.gated:
            return self.down_proj(activation(self.up_proj(x)))
        if self.gate_up_proj is None:
            gate, up = self.gate_proj(x), self.up_proj(x)
        else:
            both = self.gate_up_proj(x)
            if fuses(both):
                return self.down_proj(gated(both, self.activation))
            gate, up = both.chunk(2, dim=-1)
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
        self.gate_norm = RMSNorm(config.hidden_size, config.norm_eps) if config.experts.beside else None
        self.expert_scales = nn.Parameter(torch.ones(count)) if config.experts.beside else None
        self._grouped: GroupedExperts | None = None

    def forward(self, x: Tensor, stream: Tensor | None = None) -> Tensor:
        """x [N, d]; the router reads the `stream`, where that is given, normed and divided by sqrt(d)."""
        seen = x
        if self.gate_norm is not None and stream is not None:
            seen = self.gate_norm(stream) * stream.shape[-1] ** -0.5
        weights, chosen = self._route(self.gate(seen).float())
        weights, grouped = weights.to(x.dtype), self._at_once(x)
        if grouped is not None:
            out = grouped(x, weights, chosen)
        else:
            out = torch.zeros_like(x)
            for expert in chosen.unique().tolist():
                rows, places = torch.where(chosen == expert)
                out.index_add_(0, rows, self.experts[expert](x[rows]) * weights[rows, places, None])
        return out if self.shared_experts is None else out + self.shared_experts(x)

    def _at_once(self, x: Tensor) -> GroupedExperts | None:
        """All experts in two launches, where a kernel runs them and nobody has changed how they compute."""
        first, last = cast(FeedForward, self.experts[0]), cast(FeedForward, self.experts[-1])
        if type(first) is not FeedForward or not GroupedExperts.takes(first) or not fuses(x, first.down_proj.weight):
            return None
        if self._grouped is None or not self._grouped.are_at(first, last):
            self._grouped = GroupedExperts(cast(list[FeedForward], list(self.experts)))
        return self._grouped

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
        if self.expert_scales is not None:
            weights = weights * self.expert_scales[chosen]
        return weights * self.config.scale, chosen


class ExpertsBeside(nn.Module):
    """A mixture of experts whose output is added to that of a dense feed-forward layer."""

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.dense_norm = norm_of(config)
        self.input_norm = norm_of(config)
        self.experts = Experts(config)
        self.output_norm = norm_of(config)

    def forward(self, stream: Tensor, dense: Tensor) -> Tensor:
        """The stream before the feed-forward layer and what that made of it, both [N, d] -> [N, d]."""
        return self.dense_norm(dense) + self.output_norm(self.experts(self.input_norm(stream), stream))
