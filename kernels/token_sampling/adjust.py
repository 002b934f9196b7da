"""What requests change of the network's logits before a token is drawn, for the whole batch at once.

Everything comes as flat lists of entries, (row, token id, value), so that a row without penalties, biases or a grammar
takes no part; the pairs (row, token id) of one call are distinct where the operation is not a sum. All in place.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from kernels.dispatch import triton_for


def penalise(
    logits: Tensor, row: Tensor, token: Tensor, count: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> None:
    """logits float32 [R, V]; the others [E], one entry a token that row has seen, each pair once.

    `count` is how often the row generated it: 0 for a token of its prompt alone, which only `repetition` touches
    (CTRL, arXiv 1909.05858, equation 2: positive logits are divided, others multiplied). Then OpenAI's
    logit - frequency·count - presence·[count > 0].
    """
    if triton_for(logits):
        from kernels.token_sampling import triton_kernel_adjust

        return triton_kernel_adjust.penalise(logits, row, token, count, repetition, presence, frequency)
    value = logits[row, token]
    value = torch.where(value > 0, value / repetition, value * repetition)
    logits[row, token] = value - frequency * count - presence * (count > 0)


def add_bias(logits: Tensor, row: Tensor, token: Tensor, value: Tensor) -> None:
    """Adds `value` [E] to logits[row, token]; a token that is named twice gets both. -inf bans."""
    if triton_for(logits):
        from kernels.token_sampling import triton_kernel_adjust

        return triton_kernel_adjust.add_bias(logits, row, token, value)
    logits.index_put_((row, token), value, accumulate=True)


def apply_bitmask(logits: Tensor, row: Tensor, mask: Tensor) -> None:
    """Only the tokens whose bit is set stay possible in logits[row]. mask: uint8 [len(row), >= V / 8], lowest bit first."""
    if triton_for(logits):
        from kernels.token_sampling import triton_kernel_adjust

        return triton_kernel_adjust.apply_bitmask(logits, row, mask)
    bias = _byte_biases(mask.device).index_select(0, mask.flatten().int()).view(len(mask), -1)
    logits.index_add_(0, row, bias[:, : logits.shape[1]])


@functools.cache
def _byte_biases(device: torch.device) -> Tensor:
    """What every byte of a mask adds to its eight logits, [256, 8]: looking it up is far cheaper than taking bits apart."""
    allowed = (torch.arange(256, device=device)[:, None] >> torch.arange(8, device=device)) & 1
    return torch.zeros(256, 8, device=device).masked_fill(allowed == 0, float("-inf"))


def plain_logprobs(logits: Tensor, row: Tensor, chosen: Tensor, most: int, never: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities under the softmax of unchanged logits [R, V]: of `chosen` [E] in logits[row], and of the `most`
    likeliest there without `never`, which are no tokens: [E], [E, most], and their ids [E, most]."""
    logprobs = torch.log_softmax(logits[row], dim=-1)
    own = logprobs.gather(1, chosen[:, None])[:, 0]
    # Not logprobs[:, never] = ..., which brings the number to a GPU by a copy that the host waits for.
    logprobs.index_fill_(1, never, float("-inf"))
    top, tokens = logprobs.topk(min(most, logprobs.shape[1]), dim=-1)
    return own, top, tokens
