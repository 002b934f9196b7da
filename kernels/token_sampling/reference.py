"""Token sampling in plain torch: every row with its own temperature, top-k, top-p, min-p and uniform number."""

from __future__ import annotations

import torch
from torch import Tensor

COLDEST = 1e-5
"""Below this temperature differences of logits overflow, and the argmax is meant."""


def draw_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, uniform: Tensor
) -> tuple[Tensor, Tensor]:
    """See `kernels.token_sampling.draw_tokens`."""
    plain = torch.softmax(logits, dim=-1)
    greedy = logits.argmax(dim=-1)
    cold = temperature < COLDEST
    if bool(cold.all()):
        return greedy, plain.gather(1, greedy[:, None])[:, 0]
    scale = torch.where(cold, torch.ones_like(temperature), temperature)
    p = torch.softmax(logits / scale[:, None], dim=-1)
    if bool(((top_k > 0) | (top_p < 1.0)).any()):
        ordered, order = p.sort(dim=-1, descending=True, stable=True)
        rank = torch.arange(p.shape[1], device=p.device)[None]
        limit = torch.where(top_k > 0, top_k, p.shape[1])[:, None]
        ordered = torch.where(rank < limit, ordered, 0.0)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        before = ordered.cumsum(-1) - ordered
        ordered = torch.where((before < top_p[:, None]) | (rank == 0), ordered, 0.0)
        p = torch.zeros_like(p).scatter(1, order, ordered)
    p = torch.where(p >= min_p[:, None] * p.amax(-1, keepdim=True), p, 0.0)
    cumulative = p.double().cumsum(-1)
    target = uniform.double()[:, None] * cumulative[:, -1:]
    drawn = (cumulative <= target).sum(-1).clamp(max=p.shape[1] - 1)
    token = torch.where(cold, greedy, drawn)
    return token, plain.gather(1, token[:, None])[:, 0]
