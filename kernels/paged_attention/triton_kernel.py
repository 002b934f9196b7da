"""Paged attention by Triton: online softmax over tiles of keys (FlashAttention-2, arXiv 2307.08691), with the heads of a group
as rows of one tile, and contexts split over programs whose results are merged.

The numbers that change from forward to forward lie in tensors of one layout (`layout`). Sums run over places in ascending
order, in steps that begin at multiples of BLOCK_N, and what a query does not see changes no bit of its sums: what a query gets
depends on its tile's size and on where its context was split, not on what else is in the tile or the batch.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.fusing import power_of_two
from kernels.paged_attention.layout import ANCHORED, APART, MERGE, ROW, TASK, TREE, LayerKind, PackedPlans
from kernels.triton_math import product, tanh

_ROW, _TREE, _TASK, _MERGE = tl.constexpr(ROW), tl.constexpr(TREE), tl.constexpr(TASK), tl.constexpr(MERGE)
_ANCHORED, _APART = tl.constexpr(ANCHORED), tl.constexpr(APART)
_LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _seen(
    place, behind, lowest, stands, low, high, start, length, tree, trees, WINDOW: tl.constexpr, TREES: tl.constexpr
):  # fmt: skip
    """Which of the places [BLOCK_N] each query [BLOCK_M] sees: those from `lowest` to `behind`, or its branch of a tree."""
    seen = place[None, :] < behind[:, None]
    if WINDOW > 0:
        seen = seen & (place[None, :] >= lowest[:, None])
    if TREES:
        number = place - start
        listed = (number >= 0) & (number < tl.where(tree >= 0, length, 0))
        word = tl.where((number < 32)[None, :], low[:, None], high[:, None])
        bit = (word >> (number & 31)[None, :]) & 1
        branch = tl.where(listed[None, :], bit != 0, (number < 0)[None, :])
        if WINDOW > 0:
            depth = tl.load(trees + tl.maximum(tree, 0) * _TREE + number * _TREE, mask=listed, other=0)
            key_stands = tl.where(listed, start + depth, place)
            branch = branch & (key_stands[None, :] > stands[:, None] - WINDOW)
        seen = seen & tl.where(tree >= 0, branch, seen)
    return seen


@triton.jit
def _step(
    acc, total, peak, q, first, end, behind, lowest, stands, low, high, start, length, tree, trees, table, apart, store, scale,
    softcap,
    KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, WINDOW: tl.constexpr, CAPPED: tl.constexpr,
    TREES: tl.constexpr, MASKED: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One tile of keys from place `first` on into the sums; if not MASKED, all of it is seen by all."""
    place = first + tl.arange(0, BLOCK_N)
    there = place < end
    d = tl.arange(0, BLOCK_D)
    entry = tl.load(table + tl.where(apart, place, place // BLOCK_SIZE), mask=there, other=0)
    slot = tl.where(apart, entry, entry * BLOCK_SIZE + place % BLOCK_SIZE).to(tl.int64)
    address = store + slot[:, None] * (2 * KV_HEADS * HEAD_DIM) + d[None, :]
    held = there[:, None] & (d < HEAD_DIM)[None, :]
    key = tl.load(address, mask=held, other=0.0)
    scores = product(q, tl.trans(key), tl.zeros((q.shape[0], BLOCK_N), tl.float32)) * scale
    if CAPPED:
        scores = softcap * tanh(scores / softcap)
    scores = scores * _LOG2_E
    if MASKED:
        seen = _seen(place, behind, lowest, stands, low, high, start, length, tree, trees, WINDOW, TREES)
        scores = tl.where(seen & there[None, :], scores, float("-inf"))
    highest = tl.maximum(peak, tl.max(scores, 1))
    base = tl.where(highest == float("-inf"), 0.0, highest)
    kept = tl.exp2(peak - base)
    weights = tl.exp2(scores - base[:, None])
    value = tl.load(address + KV_HEADS * HEAD_DIM, mask=held, other=0.0)
    acc = product(weights.to(value.dtype), value, acc * kept[:, None])
    total = total * kept + tl.sum(weights, 1)
    return acc, total, highest


@triton.jit
def attention_kernel(
    query, store, out, partial, sums, rows, trees, tasks, entries, scale, softcap,
    QUERY_STRIDE: tl.constexpr, HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    WINDOW: tl.constexpr, CAPPED: tl.constexpr, TREES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (task, head of keys and values): its queries' attention over its places, into `out`, or into its partial result:
    the weighted values, and of each row the highest score (by log2 e) and the sum of weights."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    task, head = tasks + tl.program_id(0) * _TASK, tl.program_id(1)
    count = tl.load(task + 2)
    if count == 0:
        return
    row = rows + tl.load(task) * _ROW
    begin, full, end, part = tl.load(task + 3), tl.load(task + 4), tl.load(task + 5), tl.load(task + 6)
    length, start, stop = tl.load(row + 1), tl.load(row + 2), tl.load(row + 3)
    span, flags, tree = tl.maximum(tl.load(row + 4), 1), tl.load(row + 5), tl.load(row + 7)
    table, apart = entries + tl.load(row + 6), (flags & _APART) != 0
    m, d = tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    at = tl.load(task + 1) + m // GROUP
    valid = m // GROUP < count
    own = start + at // span * span
    behind = tl.where(own + span < start + length, own + span, stop)
    stands, low, high = start + at, at, at
    lowest = tl.minimum(tl.where((flags & _ANCHORED) != 0, own, stands) - WINDOW + 1, own)
    if TREES:
        in_tree = tl.where(valid, tree, -1) >= 0
        node = trees + (tl.maximum(tree, 0) + at) * _TREE
        stands = start + tl.load(node, mask=in_tree, other=0)
        low, high = tl.load(node + 1, mask=in_tree, other=0), tl.load(node + 2, mask=in_tree, other=0)
        behind, lowest = tl.where(in_tree, stop, behind), tl.where(in_tree, 0, lowest)
    behind = tl.where(valid, behind, 0)
    token = (tl.load(row) + at).to(tl.int64)
    column = (head * GROUP + m % GROUP) * HEAD_DIM
    held = valid[:, None] & (d < HEAD_DIM)[None, :]
    q = tl.load(query + (token * QUERY_STRIDE + column)[:, None] + d[None, :], mask=held, other=0.0)
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    keys = store + head * HEAD_DIM
    for first in tl.range(begin, full, BLOCK_N):
        acc, total, peak = _step(
            acc, total, peak, q, first, end, behind, lowest, stands, low, high, start, length, tree, trees, table, apart, keys,
            scale, softcap, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, CAPPED, TREES, False, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    for first in tl.range(full, end, BLOCK_N):
        acc, total, peak = _step(
            acc, total, peak, q, first, end, behind, lowest, stands, low, high, start, length, tree, trees, table, apart, keys,
            scale, softcap, KV_HEADS, HEAD_DIM, BLOCK_SIZE, WINDOW, CAPPED, TREES, True, BLOCK_N, BLOCK_D,
        )  # fmt: skip
    if part < 0:
        found = acc / tl.where(total == 0.0, 1.0, total)[:, None]
        target = out + (token * (HEADS * HEAD_DIM) + column)[:, None] + d[None, :]
        tl.store(target, found.to(out.dtype.element_ty), mask=held)
    else:
        place = (part.to(tl.int64) * KV_HEADS + head) * BLOCK_M + m
        tl.store(partial + place[:, None] * HEAD_DIM + d[None, :], acc, mask=held)
        tl.store(sums + place * 2, peak, mask=valid)
        tl.store(sums + place * 2 + 1, total, mask=valid)


@triton.jit
def merge_kernel(
    out, partial, sums, rows, merges,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, TILE: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Program (merge, head of keys and values, BLOCK_M rows of the TILE): partial results joined in the order of their places."""
    GROUP: tl.constexpr = HEADS // KV_HEADS
    merge, head = merges + tl.program_id(0) * _MERGE, tl.program_id(1)
    count = tl.load(merge + 2)
    if count == 0:
        return
    part, parts = tl.load(merge + 3), tl.load(merge + 4)
    m, d = tl.program_id(2) * BLOCK_M + tl.arange(0, BLOCK_M), tl.arange(0, BLOCK_D)
    valid = m // GROUP < count
    held = valid[:, None] & (d < HEAD_DIM)[None, :]
    acc = tl.zeros((BLOCK_M, BLOCK_D), tl.float32)
    total = tl.zeros((BLOCK_M,), tl.float32)
    peak = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    place = (part.to(tl.int64) * KV_HEADS + head) * TILE + m
    for _ in tl.range(0, parts):
        other = tl.load(sums + place * 2, mask=valid, other=float("-inf"))
        highest = tl.maximum(peak, other)
        base = tl.where(highest == float("-inf"), 0.0, highest)
        kept, taken = tl.exp2(peak - base), tl.exp2(other - base)
        values = tl.load(partial + place[:, None] * HEAD_DIM + d[None, :], mask=held, other=0.0)
        acc = acc * kept[:, None] + values * taken[:, None]
        total = total * kept + tl.load(sums + place * 2 + 1, mask=valid, other=0.0) * taken
        peak = highest
        place += KV_HEADS * TILE
    found = acc / tl.where(total == 0.0, 1.0, total)[:, None]
    token = (tl.load(rows + tl.load(merge) * _ROW) + tl.load(merge + 1) + m // GROUP).to(tl.int64)
    target = out + (token * (HEADS * HEAD_DIM) + (head * GROUP + m % GROUP) * HEAD_DIM)[:, None] + d[None, :]
    tl.store(target, found.to(out.dtype.element_ty), mask=held)


def attend(
    query: Tensor, store: Tensor, plans: PackedPlans, window: int | None, scale: float | None = None,
    softcap: float | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """query [N, Hq, D], of which tokens may lie apart; store [blocks, block_size, 2, Hkv, D], contiguous, the batch's own keys
    and values already written; plans on the same device -> [N, Hq, D], in `out` where it is given.

    Tokens that belong to no row are left as they are in `out`, and zero without one. Scale and softcap as in
    `reference.paged_attention`; what a row's blocks hold before its last place must be finite. Workspace: float32
    [partials, Hkv, tile, D + 2] for each sweep that has merges. Raises KeyError where the plans know no such kind of layer.
    """
    kind = LayerKind(window, query.shape[1], store.shape[3], store.shape[4], store.element_size())
    if kind not in plans.layout.kinds:
        raise KeyError(f"plans were packed for {plans.layout.kinds}, not for {kind}")
    if query.stride(2) != 1 or query.stride(1) != query.shape[2] or not store.is_contiguous():
        raise ValueError("the heads of a query, and the store, must lie closely")
    if out is None:
        out = query.new_zeros(query.shape) if plans.padded else query.new_empty(query.shape)
    scale = kind.head_dim**-0.5 if scale is None else scale
    for sweep in plans.sweeps(kind):
        shape = (sweep.partials, kind.kv_heads, sweep.tile)
        partial = query.new_empty((*shape, kind.head_dim), dtype=torch.float32)
        sums = query.new_empty((*shape, 2), dtype=torch.float32)
        constants, options = launch(kind, sweep.tile)
        attention_kernel[(len(sweep.tasks), kind.kv_heads)](
            query, store, out, partial, sums, plans.rows, plans.trees, sweep.tasks, plans.entries, scale, softcap or 0.0,
            QUERY_STRIDE=query.stride(0), BLOCK_SIZE=store.shape[1], CAPPED=softcap is not None, TREES=plans.layout.trees > 0,
            **constants, **options,
        )  # fmt: skip
        if len(sweep.merges):
            constants, block = merge_constants(kind, sweep.tile), min(sweep.tile, MERGED)
            merge_kernel[(len(sweep.merges), kind.kv_heads, sweep.tile // block)](
                out, partial, sums, plans.rows, sweep.merges, **constants, num_warps=4
            )
    return out


MERGED = 16
"""Rows of a tile that a program merges."""


def launch(kind: LayerKind, tile: int) -> tuple[dict[str, int], dict[str, int]]:
    """The attention kernel's constants that follow from the kind of layer, and its options: tiles of keys take 16 KiB, so that
    several are on their way while one is used."""
    block_d = padded(kind.head_dim)
    keys = min(64, max(16, 16384 // (block_d * kind.item)))
    constants = {
        "HEADS": kind.heads, "KV_HEADS": kind.kv_heads, "HEAD_DIM": kind.head_dim, "WINDOW": kind.window or 0, "BLOCK_M": tile,
        "BLOCK_N": keys, "BLOCK_D": block_d,
    }  # fmt: skip
    wide = kind.item == 4 or tile >= 128 or tile * block_d >= 64 * 256 or block_d > 256
    return constants, {"num_warps": 8 if wide else 4, "num_stages": 3 if keys == 64 else 2}


def merge_constants(kind: LayerKind, tile: int) -> dict[str, int]:
    return {
        "HEADS": kind.heads, "KV_HEADS": kind.kv_heads, "HEAD_DIM": kind.head_dim, "TILE": tile, "BLOCK_M": min(tile, MERGED),
        "BLOCK_D": padded(kind.head_dim),
    }  # fmt: skip


def padded(head_dim: int) -> int:
    return max(16, power_of_two(head_dim))


def _instances(
    dtype: str, kind: LayerKind, tile: int, capped: bool = False, trees: bool = False
) -> list[tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]]:
    """Both kernels as they are launched for such a layer."""
    attending, options = launch(kind, tile)
    constants = {
        "QUERY_STRIDE": kind.heads * kind.head_dim, "BLOCK_SIZE": 16, "CAPPED": capped, "TREES": trees, **attending
    }  # fmt: skip
    merging = merge_constants(kind, tile)
    pointers = {name: f"*{dtype}" for name in ("query", "store", "out")} | {"partial": "*fp32", "sums": "*fp32"}
    numbers = {name: "*i32" for name in ("rows", "trees", "tasks", "entries")}
    signature = {**pointers, **numbers, "scale": "fp32", "softcap": "fp32", **dict.fromkeys(constants, "constexpr")}
    results = {name: pointers[name] for name in ("out", "partial", "sums")}
    merged = {**results, "rows": "*i32", "merges": "*i32", **dict.fromkeys(merging, "constexpr")}
    return [(attention_kernel, signature, constants, options), (merge_kernel, merged, merging, {"num_warps": 4})]


AOT = [
    *_instances("bf16", LayerKind(None, 32, 8, 128, 2), 16),
    *_instances("bf16", LayerKind(None, 32, 8, 128, 2), 128),
    *_instances("bf16", LayerKind(None, 28, 4, 128, 2), 16, trees=True),
    *_instances("bf16", LayerKind(4096, 8, 4, 256, 2), 64, capped=True),
    *_instances("fp16", LayerKind(128, 16, 16, 64, 2), 128, trees=True),
    *_instances("fp16", LayerKind(None, 32, 32, 96, 2), 16),
    *_instances("bf16", LayerKind(None, 8, 1, 512, 2), 16),
    *_instances("fp32", LayerKind(None, 32, 8, 128, 4), 16),
]
"""What the tests compile ahead of time."""
