"""Paged attention in plain torch: rows of equal query length and like context are gathered, padded to the longest, and attend.

Rows are independent of each other but for the padding, which is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

SHORT = 127
"""Keys below which padding costs less than another group."""


@dataclass(frozen=True)
class Plan:
    """One packed row: where its queries lie in the batch, the blocks of its request, and who sees what.

    The queries stand at positions start..start+queries-1. Each sees those of its own `span` of them, 1 is causal, or all
    positions before `until`, which is then their row's end at least.
    """

    offset: int
    queries: int
    start: int
    blocks: Sequence[int]
    until: int | None = None
    span: int = 1


@dataclass(frozen=True)
class RowGroup:
    """G rows of Q queries each: packed indices [G * Q], blocks of their context [G * C / block_size], and who may see whom,
    bool [G, 1, Q, C]."""

    queries: Tensor
    blocks: Tensor
    mask: Tensor


def plan_groups(plans: Sequence[Plan], block_size: int, window: int | None, device: torch.device) -> list[RowGroup]:
    """Groups of rows with the same number of queries and contexts of one size class, a power of two, so that one long row
    does not cost the short ones; computed once a forward, used by every layer with this window.

    A query at position i sees keys j with i - window < j, and all of its own span or, with `until`, from its row's start on.
    """
    alike: dict[tuple[int, int], list[Plan]] = {}
    for plan in plans:
        blocks = ((plan.until or plan.start + plan.queries) - 1) // block_size - _first_block(plan, block_size, window)
        alike.setdefault((plan.queries, max(blocks * block_size, SHORT).bit_length()), []).append(plan)
    return [_group(rows, length, block_size, window, device) for (length, _), rows in alike.items()]


def _first_block(row: Plan, block_size: int, window: int | None) -> int:
    """The first block of its context that a row sees."""
    return 0 if window is None else max(0, row.start - window + 1) // block_size


def _group(rows: list[Plan], length: int, block_size: int, window: int | None, device: torch.device) -> RowGroup:
    firsts = [_first_block(row, block_size, window) for row in rows]
    stops = [row.until or row.start + length for row in rows]
    columns = zip(rows, firsts, stops, strict=True)
    spans_of = [length if row.until else row.span for row in rows]
    numbers = torch.tensor(
        [(row.offset, row.start, first, stop, span) for (row, first, stop), span in zip(columns, spans_of, strict=True)]
    )
    offsets, starts, first_blocks, ends, spans = (column[:, None] for column in numbers.unbind(1))
    lasts = [(stop - 1) // block_size for stop in stops]
    count = max(last - first + 1 for first, last in zip(firsts, lasts, strict=True))
    # A row with less context than the longest is filled up with block 0, which the mask hides.
    contexts = [list(row.blocks[first : last + 1]) for row, first, last in zip(rows, firsts, lasts, strict=True)]
    tables = torch.tensor([blocks + [0] * (count - len(blocks)) for blocks in contexts])
    keys = first_blocks * block_size + torch.arange(count * block_size)
    queries = starts + torch.arange(length)
    own = starts + torch.arange(length) // spans * spans
    last_seen = torch.where(own + spans < starts + length, own + spans, ends) - 1
    mask = keys[:, None, :] <= last_seen[:, :, None]
    if window is not None:
        mask &= (keys[:, None, :] > queries[:, :, None] - window) | (keys[:, None, :] >= own[:, :, None])
    packed = (offsets + torch.arange(length)).flatten()
    return RowGroup(packed.to(device), tables.flatten().to(device), mask[:, None].to(device))


def paged_attention(
    query: Tensor, store: Tensor, groups: Sequence[RowGroup], scale: float | None = None, softcap: float | None = None
) -> Tensor:
    """query [N, Hq, D]; store [blocks, block_size, 2, Hkv, D], keys and values, the batch's own already written -> [N, Hq, D].

    Scores are multiplied by `scale` (None: 1/sqrt(D)); with a softcap c they then become c * tanh(score / c).
    Everything in the store must be finite, also where no row sees it: what is masked is weighted by zero, not left out.
    """
    out = torch.empty_like(query)
    kv_heads, size = store.shape[3:]
    grouped = query.shape[1] != kv_heads
    for group in groups:
        # index_select copies whole blocks, several times faster on a CPU than indexing with brackets.
        count, _, length, context = group.mask.shape
        rows = query.index_select(0, group.queries).unflatten(0, (count, length)).transpose(1, 2)
        gathered = store.flatten(1).index_select(0, group.blocks).view(count, context, 2, kv_heads, size)
        k, v = gathered.permute(2, 0, 3, 1, 4)
        if softcap is None:
            attended = F.scaled_dot_product_attention(rows, k, v, attn_mask=group.mask, scale=scale, enable_gqa=grouped)
        else:
            attended = _softcapped_attention(rows, k, v, group.mask, size**-0.5 if scale is None else scale, softcap)
        out.index_copy_(0, group.queries, attended.transpose(1, 2).flatten(0, 1))
    return out


def _softcapped_attention(query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scale: float, softcap: float) -> Tensor:
    """query [G, Hq, Q, D], key and value [G, Hkv, C, D], mask [G, 1, Q, C] -> [G, Hq, Q, D]; weights in float32."""
    rows = query.unflatten(1, (key.shape[1], -1))
    scores = torch.einsum("gkhqd,gkcd->gkhqc", rows, key).float() * scale
    capped = torch.tanh(scores / softcap) * softcap
    weights = capped.masked_fill(~mask[:, None], float("-inf")).softmax(-1).to(value.dtype)
    return torch.einsum("gkhqc,gkcd->gkhqd", weights, value).flatten(1, 2)
