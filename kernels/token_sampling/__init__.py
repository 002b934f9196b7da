"""Drawing tokens for a whole batch."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels import cpu
from kernels.dispatch import triton_for
from kernels.token_sampling import reference
from kernels.token_sampling.adjust import add_bias, apply_bitmask, penalise, plain_logprobs
from kernels.token_sampling.kinds import EVERY_KIND, Kinds
from kernels.token_sampling.reference import COLDEST

__all__ = [
    "COLDEST", "EVERY_KIND", "Kinds", "add_bias", "apply_bitmask", "draw_tokens", "penalise", "plain_logprobs", "spread"
]  # fmt: skip


def draw_tokens(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, numbers: Tensor,
    purpose: int, threads: int = 1, kinds: Kinds = EVERY_KIND,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """One token a row, and its probability under the plain softmax of the logits.

    logits float32 [R, V], -inf where a token is banned; temperature, top_p, min_p float [R]; top_k int64 [R], 0 is off.
    Rows with a temperature below 1e-5 take the argmax. The others take the token with the highest
    logit / temperature + Gumbel number, which has the softmax's distribution (Gumbel 1954; "perturb and MAP", Papandreou
    and Yuille, ICCV 2011). A token's number depends on the row's seed and number [R] int64, `purpose` and the token alone
    (`kernels.philox`), not on the logits: two models that are given the same numbers draw the same token with probability
    at least (1 - d) / (1 + d) at a total variation d of what they say (Daliri, Musco and Suresh, arXiv 2408.07978).
    The filters apply in the order top-k, top-p, min-p, each to the distribution at the row's temperature, as in vLLM and
    transformers. `threads` are for the CPU kernel, which draws rows in parallel; `kinds` spares a GPU what no row needs.
    """
    if triton_for(logits):
        from kernels.token_sampling.triton_draw import draw

        drawn = draw(logits, temperature, top_k, top_p, min_p, seeds, numbers, purpose, kinds)
        return drawn.token, drawn.confidence
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and cpu.library() is not None:
        return cpu.draw_tokens(logits, temperature, top_k, top_p, min_p, seeds, numbers, purpose, threads)
    return reference.draw_tokens(logits, temperature, top_k, top_p, min_p, seeds, numbers, purpose)


def spread(logits: Tensor, temperature: Tensor, threads: int = 1) -> tuple[Tensor, Tensor]:
    """How sure each row is of its token: entropy in nats at its temperature, and the margin, which is the probability of the
    likeliest token less that of the next at temperature 1; both float32 [R].

    logits float32 [R, V], -inf where a token is banned; temperature float32 [R], and below 1e-5, where the argmax is drawn,
    as if it were 1. Neither knows of top-k, top-p and min-p.
    """
    scale = torch.where(temperature < reference.COLDEST, torch.ones_like(temperature), temperature)
    if triton_for(logits):
        from kernels.token_sampling.triton_draw import measure

        measured = measure(logits, scale)
        return measured.entropy, measured.margin
    if logits.device.type == "cpu" and logits.dtype == torch.float32 and cpu.library() is not None:
        return cpu.spread(logits, scale, threads)
    return reference.spread(logits, scale)
