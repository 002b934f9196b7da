"""Cuts packed rows into the tasks of the Triton kernel: pure functions of plans and numbers (`layout` says what they mean)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from kernels.paged_attention.layout import (
    ANCHORED,
    APART,
    MERGE,
    ROW,
    TREE,
    LayerKind,
    Layout,
    PackedPlans,
    SweepSize,
)
from kernels.paged_attention.plan import Plan
from kernels.paged_attention.tables import Tables

ALIGNED = 64
"""Places that ranges begin at are multiples of this, which the kernels' tiles of keys divide."""

SHORTEST_SPLIT = 256
INVARIANT_SPLIT = 1024
"""Places of a task at least; and exactly, for whoever must not depend on the batch."""

MOST_TREE_TOKENS = 64


def pack_plans(
    plans: Sequence[Plan], block_size: int, kinds: Sequence[LayerKind], programs: int, invariant: bool = False,
    layout: Layout | None = None, pinned: bool = False, tables: Tables | None = None,
) -> PackedPlans:  # fmt: skip
    """The rows for every kind of layer, on the host, in a layout of their own or one that is given.

    Contexts are split such that a layer has about `programs` programs. With `invariant` they are split, and all rows tiled, in a
    way that depends on positions alone. `tables` remembers those of the last call. Raises ValueError where a tree has more than
    64 tokens or the layout has no room.
    """
    rows, trees, entries = _rows(plans, block_size, Tables() if tables is None else tables)
    cut = [_sweeps(rows, kind, programs, invariant) for kind in kinds]
    sizes = tuple((_size(small), _size(large)) for small, large in cut)
    own = Layout(len(rows), len(trees), len(entries), tuple(kinds), sizes)
    packed = _empty(own if layout is None else layout, len(entries), layout is not None, pinned)
    _fill("rows", packed.rows.view(-1, ROW), rows)
    _fill("tokens of trees", packed.trees.view(-1, TREE), trees)
    _fill("entries of block tables", packed.entries, entries)
    for kind, sweeps in zip(kinds, cut, strict=True):
        for room, (tasks, merges) in zip(packed.every_sweep(kind), sweeps, strict=True):
            _fill("tasks", room.tasks, tasks)
            _fill("merges", room.merges, merges)
            partials = int(merges[:, 4].sum())
            if partials > room.partials:
                raise ValueError(f"the layout holds {room.partials} partial results, and there are {partials}")
    return packed


def _empty(layout: Layout, entries: int, padded: bool, pinned: bool) -> PackedPlans:
    numbers = torch.zeros(layout.size, dtype=torch.int32, pin_memory=pinned)
    return PackedPlans(layout, numbers, layout.entries_begin + entries, padded)


def _fill(what: str, room: Tensor, values: np.ndarray) -> None:
    if len(values) > len(room):
        raise ValueError(f"the layout holds {len(room)} {what}, and there are {len(values)}")
    room.numpy()[: len(values)] = values


def _rows(plans: Sequence[Plan], block_size: int, known_tables: Tables) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [R, ROW], tokens of trees [T, TREE], and all tables behind one another; rows of one request share theirs."""
    rows: list[tuple[int, ...]] = []
    trees: list[tuple[int, int, int, int]] = []
    tables: list[np.ndarray] = []
    known_tables.begin()
    known: dict[tuple[int, int], int] = {}
    length = 0
    for plan in plans:
        table, seen = (plan.slots, plan.stop) if plan.slots else (plan.blocks, (plan.stop - 1) // block_size + 1)
        if (id(table), seen) not in known:
            known[id(table), seen] = length
            tables.append(known_tables.array(table, seen))
            length += seen
        tree = -1
        if plan.visible:
            if plan.queries > MOST_TREE_TOKENS:
                raise ValueError(f"a tree has {plan.queries} tokens; at most {MOST_TREE_TOKENS} can be told apart")
            tree = len(trees)
            masks = [(_signed(bits & 0xFFFFFFFF), _signed(bits >> 32)) for bits in plan.visible]
            trees += [(depth, *mask, 0) for depth, mask in zip(plan.depths, masks, strict=True)]
        flags = ANCHORED * plan.anchored | APART * bool(plan.slots)
        span = plan.queries if plan.until else plan.span
        rows.append((plan.offset, plan.queries, plan.start, plan.stop, span, flags, known[id(table), seen], tree))
    joined = np.concatenate(tables) if tables else np.zeros(0, np.int32)
    return np.asarray(rows, np.int32).reshape(-1, ROW), np.asarray(trees, np.int32).reshape(-1, TREE), joined


def _signed(word: int) -> int:
    return word - (1 << 32) if word >> 31 else word


Cut = tuple[np.ndarray, np.ndarray]
"""Tasks [T, TASK] and merges [M, MERGE]."""


def _size(cut: Cut) -> SweepSize:
    tasks, merges = cut
    return SweepSize(len(tasks), len(merges), int(merges[:, 4].sum()))


def _sweeps(rows: np.ndarray, kind: LayerKind, programs: int, invariant: bool) -> tuple[Cut, Cut]:
    """Of small tiles and of large ones."""
    small, large = kind.tiles
    few = np.full(len(rows), small == large) if small == large or invariant else rows[:, 1] * kind.group <= small
    sides = ((few, small), (~few, large))
    tiles = [_tiles(rows, np.flatnonzero(which), tile // kind.group, kind.window) for which, tile in sides]
    split = INVARIANT_SPLIT
    if not invariant:
        work = sum(int((tile[:, 5] - tile[:, 3]).sum()) for tile in tiles)
        share = -(-work // max(1, programs // kind.kv_heads))
        split = max(SHORTEST_SPLIT, -(-share // ALIGNED) * ALIGNED)
    return _split(tiles[0], split), _split(tiles[1], split)


def _tiles(rows: np.ndarray, which: np.ndarray, queries: int, window: int | None) -> np.ndarray:
    """Tasks that see all that they have to, [T, TASK], of at most so many queries."""
    counts = -(-rows[which, 1] // queries)
    row = np.repeat(which, counts)
    first = (np.arange(len(row)) - np.repeat(np.cumsum(counts) - counts, counts)) * queries
    _, length, start, stop, span, flags, _, tree = rows[row].T
    span = np.maximum(span, 1)
    count = np.minimum(queries, length - first)
    earliest, latest = (start + at // span * span for at in (first, first + count - 1))
    in_tree = tree >= 0
    last = np.where(latest + span < start + length, latest + span, stop)
    end = np.where(in_tree, stop, last)
    if window is None:
        seen_by_all = np.where(earliest + span < start + length, earliest + span, stop)
        begin, full = np.zeros_like(first), np.where(in_tree, start, seen_by_all) // ALIGNED * ALIGNED
    else:
        stands = np.where(flags & ANCHORED > 0, earliest, start + first)
        lowest = np.where(in_tree, start - window + 1, np.minimum(stands - window + 1, earliest))
        begin = np.maximum(lowest, 0) // ALIGNED * ALIGNED
        full = begin
    none = np.zeros_like(first)
    return np.stack((row, first, count, begin, full, end, none - 1, none), axis=1).astype(np.int32)


def _split(tiles: np.ndarray, split: int) -> Cut:
    """The places of every tile taken apart at the multiples of `split`; one that remains whole needs no merge."""
    begin, full, end = tiles[:, 3], tiles[:, 4], tiles[:, 5]
    pieces = (end - 1) // split - begin // split + 1
    tile = np.repeat(np.arange(len(tiles)), pieces)
    number = np.arange(len(tile)) - np.repeat(np.cumsum(pieces) - pieces, pieces)
    tasks = tiles[tile]
    lower = (begin // split)[tile] * split + number * split
    tasks[:, 3] = np.maximum(begin[tile], lower)
    tasks[:, 5] = np.minimum(end[tile], lower + split)
    tasks[:, 4] = np.clip(full[tile], tasks[:, 3], tasks[:, 5])
    apart = pieces[tile] > 1
    tasks[apart, 6] = np.arange(apart.sum())
    parts = pieces[pieces > 1]
    merges = np.zeros((len(parts), MERGE), np.int32)
    merges[:, :3], merges[:, 3], merges[:, 4] = tiles[pieces > 1, :3], np.cumsum(parts) - parts, parts
    return tasks, merges
