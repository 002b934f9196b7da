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
    """One packed row: where its queries lie in the batch, the slots of its context, and who sees what.

    `slots` int64 [C] are the cache slots of positions first..first+C-1; the last `queries` of them are the row's own.
    """

    offset: int
    queries: int
    start: int
    first: int
    slots: Tensor
    bidirectional: bool


@dataclass(frozen=True)
class RowGroup:
    """G rows of Q queries each: packed indices [G, Q], context slots [G, C], and who may see whom, bool [G, 1, Q, C]."""

    queries: Tensor
    slots: Tensor
    mask: Tensor


def plan_groups(plans: Sequence[Plan], window: int | None, device: torch.device) -> list[RowGroup]:
    """Groups of rows with the same number of queries; computed once a forward, used by every layer.

    A query at position i sees keys j with i - window < j; causal queries j <= i, block queries all of their row.
    """
    by_length: dict[int, list[Plan]] = {}
    for plan in plans:
        by_length.setdefault(plan.queries, []).append(plan)
    groups = []
    for length, rows in by_length.items():
        context = max(len(row.slots) for row in rows)
        slots = torch.zeros(len(rows), context, dtype=torch.int64)
        keys = torch.full((len(rows), context), torch.iinfo(torch.int64).max // 2)
        for i, row in enumerate(rows):
            slots[i, : len(row.slots)] = row.slots
            keys[i, : len(row.slots)] = torch.arange(row.first, row.first + len(row.slots))
        starts = torch.tensor([row.start for row in rows])[:, None]
        queries = starts + torch.arange(length)
        ends = torch.tensor([row.start + row.queries - 1 for row in rows])[:, None]
        bidirectional = torch.tensor([row.bidirectional for row in rows])[:, None]
        last_seen = torch.where(bidirectional, ends, queries)
        mask = keys[:, None, :] <= last_seen[:, :, None]
        if window is not None:
            mask &= (keys[:, None, :] > queries[:, :, None] - window) | (
                bidirectional[:, :, None] & (keys[:, None, :] >= starts[:, :, None])
            )
        packed = torch.tensor([row.offset for row in rows])[:, None] + torch.arange(length)
        groups.append(RowGroup(packed.to(device), slots.to(device), mask[:, None].to(device)))
    return groups


def paged_attention(query: Tensor, keys: Tensor, values: Tensor, groups: Sequence[RowGroup]) -> Tensor:
    """query [N, Hq, D]; keys and values [slots, Hkv, D], the batch's own already written -> [N, Hq, D]."""
    out = torch.empty_like(query)
    grouped = query.shape[1] != keys.shape[1]
    for group in groups:
        rows = query[group.queries].transpose(1, 2)
        k = keys[group.slots].transpose(1, 2)
        v = values[group.slots].transpose(1, 2)
        attended = F.scaled_dot_product_attention(rows, k, v, attn_mask=group.mask, enable_gqa=grouped)
        out[group.queries] = attended.transpose(1, 2)
    return out
