"""Which positions of canvases a forward sets, in plain torch."""

from __future__ import annotations

import torch
from torch import Tensor

FACTOR, MARGIN, ENTROPY, ENTROPY_BOUND = 1, 3, 4, 5


def chosen(
    there: Tensor, confidence: Tensor, entropy: Tensor, margin: Tensor, rule: Tensor, value: Tensor, due: Tensor,
    leftmost: Tensor,
) -> Tensor:  # fmt: skip
    """there bool, confidence, entropy and margin float64 [C, L] -> bool [C, L]; see `kernels.canvas_step.Rule`."""
    rule, value, due = rule[:, None], value[:, None], due[:, None]
    measure = torch.where(rule == MARGIN, margin, torch.where(rule >= ENTROPY, -entropy, confidence))
    measure = torch.where(there, measure, float("-inf"))
    order = measure.argsort(dim=-1, descending=True, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, torch.arange(order.shape[1], device=order.device).expand_as(order))
    ranked = lambda x: torch.where(there, x, 0.0).gather(1, order)  # noqa: E731
    spent = ranked(entropy).cumsum(-1) - ranked(entropy)
    place = torch.arange(order.shape[1], device=order.device)[None]
    fails = ((place + 2) * (1.0 - ranked(confidence)) >= value) & (place < there.sum(-1, keepdim=True))
    count = torch.where(fails, place, order.shape[1]).amin(-1, keepdim=True)
    by_rule = (rule == 0) & (confidence > value)
    by_rule |= (rule == FACTOR) & (rank < count)
    by_rule |= (rule == ENTROPY_BOUND) & (spent <= value).gather(1, rank)
    first = there & (there.cumsum(-1) == 1)
    return there & (by_rule | (rank < due) | (leftmost[:, None] & first))
