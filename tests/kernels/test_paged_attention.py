"""Paged attention against dense attention with an explicit mask, row by row."""

from __future__ import annotations

import pytest
import torch

from kernels.paged_attention import Plan, paged_attention, plan_groups, single_spans
from service.procedures.types import TokenRow
from tests import trees

HEAD = 8


def dense(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor, scale: float | None, cap: float | None
) -> torch.Tensor:
    """Softmax attention written out: query [Q, Hq, D], keys and values [C, Hkv, D], visible bool [Q, C]."""
    repeat = query.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(repeat, 1).double(), values.repeat_interleave(repeat, 1).double()
    scores = torch.einsum("qhd,chd->hqc", query.double(), keys) * (HEAD**-0.5 if scale is None else scale)
    scores = scores if cap is None else cap * torch.tanh(scores / cap)
    weights = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    return torch.einsum("hqc,chd->qhd", weights, values).float()


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 5, 64])
@pytest.mark.parametrize("block_size", [1, 4, 8])
@pytest.mark.parametrize("scale,cap", [(None, None), (0.9, None), (0.7, 2.0)])
def test_rows_of_every_kind_in_one_batch(
    heads: int, kv_heads: int, window: int | None, block_size: int, scale: float | None, cap: float | None
) -> None:
    torch.manual_seed(heads * 100 + (window or 0))
    # (start, queries, until, span): decode, prefill from nothing and from a prefix, a canvas, one with no prefix, one
    # before text, blocks.
    rows = [
        (0, 1, 0, 1), (37, 1, 0, 1), (0, 17, 0, 1), (11, 17, 0, 1), (20, 8, 28, 1), (0, 8, 8, 1), (3, 1, 4, 1),
        (9, 8, 30, 1), (0, 12, 0, 4), (9, 17, 0, 3),
        (300, 1, 0, 1), (290, 17, 0, 1),  # in groups of their own where there is no window
    ]  # fmt: skip
    keys, values = torch.randn(1000, kv_heads, HEAD), torch.randn(1000, kv_heads, HEAD)
    free = torch.randperm(1000 // block_size)
    plans, queries, expected, used = [], [], [], 0
    for start, count, until, span in rows:
        stop = max(start + count, until)
        blocks = free[used : used - (-stop // block_size)]
        used += len(blocks)
        slots = (blocks[:, None] * block_size + torch.arange(block_size)).flatten()[:stop]
        plans.append(Plan(sum(len(q) for q in queries), count, start, blocks.tolist(), until or None, span))
        query = torch.randn(count, heads, HEAD)
        queries.append(query)
        at, key = torch.arange(start, start + count)[:, None], torch.arange(stop)[None]
        near = torch.ones(count, stop, dtype=torch.bool) if window is None else key > at - window
        own = start + (at - start) // span * span
        visible = (near | (key >= start)) if until else ((near | (key >= own)) & (key < own + span))
        expected.append(dense(query, keys[slots], values[slots], visible, scale, cap))
    store = torch.stack((keys, values), dim=1).view(1000 // block_size, block_size, 2, kv_heads, HEAD)
    groups = plan_groups(plans, block_size, window, torch.device("cpu"))
    assert len(groups) == (4 if window is not None else 6)
    out = paged_attention(torch.cat(queries), store, groups, scale, cap)
    torch.testing.assert_close(out, torch.cat(expected), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("heads,kv_heads", [(4, 4), (4, 2), (3, 1)])
@pytest.mark.parametrize("window", [None, 1, 3, 9])
@pytest.mark.parametrize("scale,cap", [(None, None), (0.7, 2.0)])
def test_trees_beside_other_rows_and_query_by_query(
    heads: int, kv_heads: int, window: int | None, scale: float | None, cap: float | None
) -> None:
    torch.manual_seed(heads)
    keys, values = torch.randn(400, kv_heads, HEAD), torch.randn(400, kv_heads, HEAD)
    free = torch.randperm(100)
    plans, queries, expected = [Plan(0, 5, 2, free[:2].tolist())], [torch.randn(5, heads, HEAD)], []
    rows = [TokenRow.tree(0, start, trees.random_draft(start, guesses), masks) for start, guesses, masks in SHAPES]
    for number, row in enumerate(rows):
        blocks = free[5 + 18 * number : 23 + 18 * number]
        slots = (blocks[:, None] * 4 + torch.arange(4)).flatten()[: row.stop]
        offset, count = sum(map(len, queries)), len(row.tokens)
        plans.append(Plan(offset, count, row.start, blocks.tolist(), depths=row.depths, visible=row.visible))
        queries.append(torch.randn(count, heads, HEAD))
        visible = trees.dense(row, window)[row.start :]
        expected.append(dense(queries[-1], keys[slots], values[slots], visible, scale, cap))
    store = torch.stack((keys, values), dim=1).view(100, 4, 2, kv_heads, HEAD)
    lone = [single for plan in plans for single in single_spans(plan, 4)]
    for some in (plans, lone):
        out = paged_attention(torch.cat(queries), store, plan_groups(some, 4, window, torch.device("cpu")), scale, cap)
        torch.testing.assert_close(out[5:], torch.cat(expected), rtol=1e-5, atol=1e-5)


SHAPES = [(0, 6, 0), (13, 6, 0), (3, 63, 0), (6, 5, 4), (1, 0, 8)]
"""Cached positions, guesses and masks behind each of some trees."""
