"""Paged attention in plain torch: rows of equal query length and like context are gathered, padded to the longest, and attend.

Rows are independent of each other but for the padding, which is masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.paged_attention.plan import Plan

SHORT = 127
"""Keys below which padding costs less than another group."""


@dataclass(frozen=True)
class RowGroup:
    """G rows of Q queries each: packed indices [G * Q], pieces of their context [G * C / piece], each so many places of
    the cache, and who may see whom, bool [G, 1, Q, C]."""

    queries: Tensor
    pieces: Tensor
    piece: int
    mask: Tensor


def plan_groups(plans: Sequence[Plan], block_size: int, window: int | None, device: torch.device) -> list[RowGroup]:
    """Groups of rows with the same number of queries and contexts of one size class, a power of two, so that one long row
    does not cost the short ones; computed once a forward, used by every layer with this window.

    A query at position i sees keys j with i - window < j, and all of its own span or, with `until`, from its row's start on;
    in a tree its branch. In anchored rows i is where the query's span begins.
    """
    alike: dict[tuple[int, int, bool], list[Plan]] = {}
    for plan in plans:
        blocks = (plan.stop - 1) // block_size - _first_block(plan, block_size, window)
        size = max(blocks * block_size, SHORT).bit_length()
        alike.setdefault((plan.queries, size, bool(plan.slots)), []).append(plan)
    return [_group(rows, length, block_size, window, device) for (length, _, _), rows in alike.items()]


def _first_block(row: Plan, block_size: int, window: int | None) -> int:
    """The first block of its context that a row sees."""
    return 0 if window is None else max(0, row.start - window + 1) // block_size


def _group(rows: list[Plan], length: int, block_size: int, window: int | None, device: torch.device) -> RowGroup:
    firsts = [_first_block(row, block_size, window) for row in rows]
    lasts = [(row.stop - 1) // block_size for row in rows]
    count = max(last - first + 1 for first, last in zip(firsts, lasts, strict=True))
    spans_of = [length if row.until else row.span for row in rows]
    columns = zip(rows, firsts, spans_of, strict=True)
    numbers = torch.tensor([(row.offset, row.start, first, row.stop, span) for row, first, span in columns])
    offsets, starts, first_blocks, ends, spans = (column[:, None] for column in numbers.unbind(1))
    keys = first_blocks * block_size + torch.arange(count * block_size)
    queries = starts + torch.arange(length)
    own = starts + torch.arange(length) // spans * spans
    last_seen = torch.where(own + spans < starts + length, own + spans, ends) - 1
    mask = keys[:, None, :] <= last_seen[:, :, None]
    if window is not None:
        begins = torch.where(torch.tensor([[row.anchored] for row in rows]), own, queries)
        mask &= (keys[:, None, :] > begins[:, :, None] - window) | (keys[:, None, :] >= own[:, :, None])
    for number, row in enumerate(rows):
        if row.visible:
            mask[number] = _tree_mask(row, keys[number], window)
    packed = (offsets + torch.arange(length)).flatten()
    piece = 1 if rows[0].slots else block_size
    pieces = torch.tensor([_pieces(row, first, count, block_size) for row, first in zip(rows, firsts, strict=True)])
    return RowGroup(packed.to(device), pieces.flatten().to(device), piece, mask[:, None].to(device))


def _pieces(row: Plan, first: int, count: int, block_size: int) -> list[int]:
    """What a row sees from block `first` on, filled up with 0, which the mask hides, to the size of `count` blocks."""
    stop = (row.stop - 1) // block_size + 1
    if row.slots:
        seen = list(row.slots[first * block_size : stop * block_size])
        return seen + [0] * (count * block_size - len(seen))
    return list(row.blocks[first:stop]) + [0] * (count - stop + first)


def _tree_mask(row: Plan, keys: Tensor, window: int | None) -> Tensor:
    """Who sees which of the places `keys` [C], bool [Q, C]."""
    positions = row.start + torch.tensor(row.depths)
    own = torch.tensor([[bits >> j & 1 for j in range(row.queries)] for bits in row.visible], dtype=torch.bool)
    inside = (keys >= row.start) & (keys < row.start + row.queries)
    at = (keys - row.start).clamp(0, row.queries - 1)
    mask = torch.where(inside, own[:, at], keys < row.start)
    if window is not None:
        mask &= torch.where(inside, positions[at], keys) > positions[:, None] - window
    return mask


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
        pieces = store.view(-1, group.piece * 2 * kv_heads * size).index_select(0, group.pieces)
        gathered = pieces.view(count, context, 2, kv_heads, size)
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
