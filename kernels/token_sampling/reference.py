"""Token sampling in plain torch: every row with its own temperature, top-k, top-p, min-p and random numbers."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.philox import uniform

COLDEST = 1e-5
"""Below this temperature differences of logits overflow, and the argmax is meant."""


def draw_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, numbers: Tensor,
    purpose: int,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """See `kernels.token_sampling.draw_tokens`."""
    plain = torch.softmax(logits, dim=-1)
    greedy = logits.argmax(dim=-1)
    cold = temperature < COLDEST
    if bool(cold.all()):
        return greedy, plain.gather(1, greedy[:, None])[:, 0]
    scale = torch.where(cold, torch.ones_like(temperature), temperature)
    p = torch.softmax(logits / scale[:, None], dim=-1)
    if bool(((top_k > 0) | (top_p < 1.0)).any()):
        # By logit, not by probability, where rounding makes equals of what differs; equals in the order of the vocabulary.
        order = logits.sort(dim=-1, descending=True, stable=True).indices
        ordered = p.gather(1, order)
        rank = torch.arange(p.shape[1], device=p.device)[None]
        limit = torch.where(top_k > 0, top_k, p.shape[1])[:, None]
        ordered = torch.where(rank < limit, ordered, 0.0)
        ordered = ordered / ordered.sum(-1, keepdim=True)
        before = ordered.cumsum(-1) - ordered
        ordered = torch.where((before < top_p[:, None]) | (rank == 0), ordered, 0.0)
        p = torch.zeros_like(p).scatter(1, order, ordered)
    p = torch.where(p >= min_p[:, None] * p.amax(-1, keepdim=True), p, 0.0)
    # Both versions measure in float64 what differs by float32, so that they never take another winner for rounding.
    x = (logits.double() - logits.double().amax(-1, keepdim=True)) / scale.float().double()[:, None]
    score = torch.where(p > 0, x + gumbel(seeds, numbers, purpose, p.shape[1]), float("-inf"))
    token = torch.where(cold, greedy, score.argmax(-1))
    return token, plain.gather(1, token[:, None])[:, 0]


def gumbel(seeds: Tensor, numbers: Tensor, purpose: int, size: int) -> Tensor:
    """Standard Gumbel numbers -log(-log u) for tokens 0..size-1 of every draw, [R, size] float64, u uniform with 32 bits.

    Token 64 g + 16 k + l has word k of the counter 16 g + l: sixteen lanes that each compute one counter hold four times
    sixteen neighbouring tokens.
    """
    groups = -(-size // 64)
    drawn = uniform(seeds, numbers, purpose, 64 * groups).view(-1, groups, 16, 4).transpose(2, 3).reshape(len(seeds), -1)
    return -torch.log(-torch.log(drawn[:, :size]))


def spread(logits: Tensor, temperature: Tensor) -> tuple[Tensor, Tensor]:
    """See `kernels.token_sampling.spread`. Each row is summed alone: in which order does not depend on how many there are."""
    logprobs = torch.log_softmax(logits / temperature[:, None], dim=-1)
    terms = torch.special.entr(logprobs.exp())
    plain = torch.softmax(logits, dim=-1).topk(2, dim=-1).values
    return torch.stack([row.sum() for row in terms]), plain[:, 0] - plain[:, 1]
