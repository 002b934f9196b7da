"""Paged attention in plain torch: rows of equal query length are gathered, padded to their longest context, and attend.

Rows are independent of each other but for the padding, which is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class Plan:
    """One packed row: where its queries lie in the batch, the blocks of its request, and who sees what.

    The queries stand at positions start..start+queries-1; no key before position `first` is seen by any of them.
    """

    offset: int
    queries: int
    start: int
    first: int
    blocks: Sequence[int]
    bidirectional: bool


@dataclass(frozen=True)
class RowGroup:
    """G rows of Q queries each: packed indices [G * Q], context slots [G * C], and who may see whom, bool [G, 1, Q, C]."""

    queries: Tensor
    slots: Tensor
    mask: Tensor


def plan_groups(plans: Sequence[Plan], block_size: int, window: int | None, device: torch.device) -> list[RowGroup]:
    """Groups of rows with the same number of queries; computed once a forward, used by every layer.

    A query at position i sees keys j with i - window < j; causal queries j <= i, block queries all of their row.
    """
    by_length: dict[int, list[Plan]] = {}
    for plan in plans:
        by_length.setdefault(plan.queries, []).append(plan)
    return [_group(rows, length, block_size, window, device) for length, rows in by_length.items()]


def _group(rows: list[Plan], length: int, block_size: int, window: int | None, device: torch.device) -> RowGroup:
    numbers = torch.tensor([(row.offset, row.start, row.first, row.bidirectional) for row in rows])
    offsets, starts, firsts, flags = (column[:, None] for column in numbers.unbind(1))
    bidirectional, stops = flags.bool(), starts + length
    context = max(row.start + length - row.first for row in rows)
    width = max(len(row.blocks) for row in rows)
    tables = torch.tensor([list(row.blocks) + [0] * (width - len(row.blocks)) for row in rows])
    keys = firsts + torch.arange(context)
    valid = keys < stops
    slots = tables.gather(1, (keys // block_size).clamp(max=width - 1)) * block_size + keys % block_size
    queries = starts + torch.arange(length)
    last_seen = torch.where(bidirectional, stops - 1, queries)
    mask = valid[:, None, :] & (keys[:, None, :] <= last_seen[:, :, None])
    if window is not None:
        near = keys[:, None, :] > queries[:, :, None] - window
        mask &= near | (bidirectional[:, :, None] & (keys[:, None, :] >= starts[:, :, None]))
    packed = (offsets + torch.arange(length)).flatten()
    return RowGroup(packed.to(device), torch.where(valid, slots, 0).flatten().to(device), mask[:, None].to(device))


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, groups: Sequence[RowGroup]) -> Tensor:
    """query [N, Hq, D]; keys and values [slots, Hkv, D], the batch's own already written -> [N, Hq, D]."""
    out = torch.empty_like(query)
    grouped = query.shape[1] != keys.shape[1]
    for group in groups:
        # index_select copies whole rows of a tensor, several times faster on a CPU than indexing with brackets.
        count, _, length, context = group.mask.shape
        rows = query.index_select(0, group.queries).unflatten(0, (count, length)).transpose(1, 2)
        k = keys.index_select(0, group.slots).unflatten(0, (count, context)).transpose(1, 2)
        v = values.index_select(0, group.slots).unflatten(0, (count, context)).transpose(1, 2)
        attended = F.scaled_dot_product_attention(rows, k, v, attn_mask=group.mask, enable_gqa=grouped)
        out.index_copy_(0, group.queries, attended.transpose(1, 2).flatten(0, 1))
    return out
