"""Launches the kernels of token sampling. Nothing here waits for the device or looks at a number on it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.token_sampling import triton_kernel as whole
from kernels.token_sampling import triton_kernel_search as search
from kernels.token_sampling.kinds import EVERY_KIND, Kinds

WIDEST = 8192
"""Tokens of a row that a program reads. Of the vocabulary alone, so that a row's sums do not depend on its batch."""

LARGEST = 1 << 19
"""Tokens of a vocabulary, of which there must be fewer: see `triton_kernel_search.UNIT`."""


@dataclass(frozen=True)
class Drawn:
    """A row each: the token, int64; its plain probability; and entropy, margin and likeliest token where they were asked."""

    token: Tensor
    confidence: Tensor
    entropy: Tensor
    margin: Tensor
    likeliest: Tensor


def draw(
    logits: Tensor, temperature: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor, seeds: Tensor, numbers: Tensor,
    purpose: int, kinds: Kinds = EVERY_KIND, warmth: Tensor | None = None, span: int = WIDEST,
) -> Drawn:  # fmt: skip
    """`kernels.token_sampling.draw_tokens`, and with `warmth` also `spread` at these temperatures, in the same pass.

    `span` is a power of two from 64 on. Raises ValueError for a vocabulary whose weights would not fit a word.
    """
    logits = logits.float() if logits.stride(-1) == 1 else logits.float().contiguous()
    rows, vocabulary = logits.shape
    if vocabulary >= LARGEST:
        raise ValueError(f"the vocabulary must have fewer than {LARGEST} tokens, not {vocabulary}")
    span = min(span, power_of_two(max(vocabulary, 64)))
    count = -(-vocabulary // span)
    padded = power_of_two(count)
    device, measured, warps = logits.device, warmth is not None, whole.WARPS[span]
    parts = torch.empty(rows, int(whole.FIELDS.value), count, dtype=torch.float64, device=device)
    tokens = torch.empty(rows, 2, count, dtype=torch.int64, device=device)
    filters = temperature.float(), top_k, top_p.float(), min_p.float()
    warm = filters[0] if warmth is None else warmth.float()
    sizes = vocabulary, logits.stride(0)
    grid = (rows, count)
    whole.read[grid](
        logits, filters[0], warm, *filters[1:], seeds, numbers, parts, tokens, *sizes, purpose,
        MEASURED=measured, DRAWS=kinds.drawn, SPAN=span, PARTS=count, num_warps=warps,
    )  # fmt: skip
    if kinds.filtered:
        passes = search.PASSES * (kinds.top_k + kinds.top_p)
        fields = torch.empty(2, rows, int(search.STATE.value), dtype=torch.int64, device=device)
        counts = torch.empty(2, rows, count, int(search.COLUMNS.value), dtype=torch.int64, device=device)
        for i in range(passes):
            one, other = i % 2, 1 - i % 2
            search.narrow[grid](
                logits, *filters, parts, fields[one], fields[other], counts[one], counts[other], *sizes,
                FIRST=i == 0, SPAN=span, PARTS=count, PADDED=padded, num_warps=warps,
            )  # fmt: skip
        last = passes % 2
        search.draw_filtered[grid](
            logits, *filters, seeds, numbers, parts, tokens, fields[last], counts[last], *sizes, purpose,
            SEARCHED=passes > 0, SPAN=span, PARTS=count, PADDED=padded, num_warps=warps,
        )  # fmt: skip
    token, likeliest = (torch.empty(rows, dtype=torch.int64, device=device) for _ in range(2))
    confidence, entropy, margin = (torch.empty(rows, device=device) for _ in range(3))
    whole.finish[(rows,)](
        logits, filters[0], warm, parts, tokens, token, confidence, entropy, margin, likeliest, *sizes,
        MEASURED=measured, DRAWS=kinds.drawn, PARTS=count, PADDED=padded, num_warps=1,
    )  # fmt: skip
    return Drawn(token, confidence, entropy, margin, likeliest)


def measure(logits: Tensor, temperature: Tensor, span: int = WIDEST) -> Drawn:
    """Confidence, entropy, margin and likeliest token of every row; `token` is the likeliest."""
    zeros = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
    off = torch.zeros(len(logits), device=logits.device)
    nothing = Kinds(drawn=False, top_k=False, top_p=False, min_p=False)
    return draw(logits, off, zeros, off, off, zeros, zeros, 0, nothing, temperature, span)


def power_of_two(size: int) -> int:
    return 1 << (size - 1).bit_length()
