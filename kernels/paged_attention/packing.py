"""Plans as numbers for the Triton kernel: one flat int32 tensor of a fixed layout, so that one copy brings it to a device, and a
captured CUDA graph runs again with other contents.

A *kind* of layer has a window and heads; for each the packed rows are cut into *tasks*, a tile of queries of one row and a range
of the places that it sees, each the work of one program for every head of keys and values. A tile whose places are split over
several tasks leaves partial results, which a *merge* joins (flash decoding: Dao et al., 2023). Rows with few queries go through
small tiles and the others through large ones, the two `sweeps` of a kind.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from kernels.fusing import power_of_two
from kernels.paged_attention.plan import Plan

ROW, TREE, TASK, MERGE = 8, 4, 8, 8
"""Numbers of a row (offset, queries, start, stop, span, flags, where its table and its tree begin), of a token of a tree
(depth, low and high half of its mask), of a task (row, first query, queries, first place, the place up to which everything is
seen by all, last place + 1, its partial result or -1), of a merge (row, first query, queries, first partial result, number).
They are filled up to multiples of 16 bytes, as the kernels expect every table to begin at one."""

ANCHORED, APART = 1, 2
"""Flags of a row: see `Plan.anchored`; its table holds slots, not blocks."""

ALIGNED = 64
"""Places that ranges begin at are multiples of this, which the kernels' tiles of keys divide."""

SHORTEST_SPLIT = 256
INVARIANT_SPLIT = 1024
"""Places of a task at least; and exactly, for whoever must not depend on the batch."""

MOST_TREE_TOKENS = 64


@dataclass(frozen=True)
class LayerKind:
    """What decides how a layer's attention is cut into tasks."""

    window: int | None
    heads: int
    kv_heads: int
    head_dim: int
    item: int
    """Bytes of one number of the store."""

    @property
    def group(self) -> int:
        """Heads of queries that share one of keys and values."""
        return self.heads // self.kv_heads

    @property
    def tiles(self) -> tuple[int, int]:
        """Rows, each a query and a head of the group, of a small and of a large tile; where they are the same, all are small.
        Products of float32 do not use tensor cores: large tiles would gain nothing."""
        least = power_of_two(self.group)
        large = 16 if self.item == 4 or self.head_dim > 256 else 128 if self.head_dim <= 128 else 64
        return max(16, least), max(large, least)


@dataclass(frozen=True)
class SweepSize:
    """How many tasks, merges and partial results there is room for."""

    tasks: int
    merges: int
    partials: int


@dataclass(frozen=True)
class Layout:
    """Room for so many rows, tokens of trees, entries of block tables, and for the small and the large tiles of each kind.

    Two batches of one layout differ in contents alone: it is what a captured graph is for.
    """

    rows: int
    trees: int
    entries: int
    kinds: tuple[LayerKind, ...]
    sweeps: tuple[tuple[SweepSize, SweepSize], ...]

    @classmethod
    def decoding(cls, rows: int, entries: int, kinds: Sequence[LayerKind], programs: int) -> Layout:
        """Holds every batch of at most so many rows that fit the small tile, without trees, whose tables have so many entries
        in all; split for so many `programs`. Not for `invariant` packing, whose tasks grow with the contexts."""
        sizes = []
        for kind in kinds:
            tasks = 2 * rows + max(1, programs // kind.kv_heads)
            sizes.append((SweepSize(tasks, rows, tasks), SweepSize(0, 0, 0)))
        return cls(rows, 0, entries, tuple(kinds), tuple(sizes))

    @property
    def size(self) -> int:
        """Numbers of the flat tensor."""
        return self._before_entries + self.entries

    @property
    def _before_entries(self) -> int:
        tables = sum(size.tasks * TASK + size.merges * MERGE for sweeps in self.sweeps for size in sweeps)
        return self.rows * ROW + self.trees * TREE + tables


@dataclass(frozen=True)
class Sweep:
    """Tasks int32 [T, TASK] and merges int32 [M, MERGE] of tiles of one size, which leave so many partial results."""

    tile: int
    tasks: Tensor
    merges: Tensor
    partials: int


@dataclass(frozen=True)
class PackedPlans:
    """`numbers` int32 [layout.size], of which the first `used` say something. With `padded` there may be tokens that belong to no
    row: the layout was not made for this batch."""

    layout: Layout
    numbers: Tensor
    used: int
    padded: bool

    def to(self, device: torch.device) -> PackedPlans:
        """A copy on the device; from pinned memory it does not hold up the host."""
        return PackedPlans(self.layout, self.numbers.to(device, non_blocking=True, copy=True), self.used, self.padded)

    def load(self, other: PackedPlans) -> None:
        """Take the contents of plans of the same layout, as a captured graph will read them."""
        if other.layout != self.layout:
            raise ValueError("plans of another layout")
        self.numbers[: other.used].copy_(other.numbers[: other.used], non_blocking=True)

    @property
    def rows(self) -> Tensor:
        return self.numbers[: self.layout.rows * ROW]

    @property
    def trees(self) -> Tensor:
        begin = self.layout.rows * ROW
        return self.numbers[begin : begin + self.layout.trees * TREE]

    @property
    def entries(self) -> Tensor:
        return self.numbers[self.layout._before_entries :]

    def sweeps(self, kind: LayerKind) -> list[Sweep]:
        """Those of a kind that have room for tasks."""
        return [sweep for sweep in self.every_sweep(kind) if len(sweep.tasks)]

    def every_sweep(self, kind: LayerKind) -> list[Sweep]:
        """Of small tiles and of large ones."""
        at, found = self.layout.rows * ROW + self.layout.trees * TREE, []
        for each, sizes in zip(self.layout.kinds, self.layout.sweeps, strict=True):
            for tile, size in zip(each.tiles, sizes, strict=True):
                tasks = self.numbers[at : at + size.tasks * TASK].view(-1, TASK)
                merges = self.numbers[at + tasks.numel() : at + tasks.numel() + size.merges * MERGE].view(-1, MERGE)
                at += tasks.numel() + merges.numel()
                if each == kind:
                    found.append(Sweep(tile, tasks, merges, size.partials))
        return found


def pack_plans(
    plans: Sequence[Plan], block_size: int, kinds: Sequence[LayerKind], programs: int, invariant: bool = False,
    layout: Layout | None = None, pinned: bool = False,
) -> PackedPlans:  # fmt: skip
    """The rows for every kind of layer, on the host, in a layout of their own or one that is given.

    Contexts are split such that a layer has about `programs` programs. With `invariant` they are split, and all rows tiled, in a
    way that depends on positions alone. Raises ValueError where a tree has more than 64 tokens or the layout has no room.
    """
    rows, trees, entries = _rows(plans, block_size)
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
    return PackedPlans(layout, numbers, layout._before_entries + entries, padded)


def _fill(what: str, room: Tensor, values: np.ndarray) -> None:
    if len(values) > len(room):
        raise ValueError(f"the layout holds {len(room)} {what}, and there are {len(values)}")
    room.numpy()[: len(values)] = values


def _rows(plans: Sequence[Plan], block_size: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows [R, ROW], tokens of trees [T, TREE], and all tables behind one another; rows of one request share theirs."""
    rows = np.zeros((len(plans), ROW), np.int32)
    trees: list[tuple[int, int, int, int]] = []
    tables: list[Sequence[int]] = []
    known: dict[tuple[int, int], int] = {}
    length = 0
    for i, plan in enumerate(plans):
        table, seen = (plan.slots, plan.stop) if plan.slots else (plan.blocks, (plan.stop - 1) // block_size + 1)
        if (id(table), seen) not in known:
            known[id(table), seen] = length
            tables.append(table[:seen])
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
        rows[i] = (plan.offset, plan.queries, plan.start, plan.stop, span, flags, known[id(table), seen], tree)
    joined = np.concatenate([np.asarray(table, np.int32) for table in tables]) if tables else np.zeros(0, np.int32)
    return rows, np.asarray(trees, np.int32).reshape(-1, TREE), joined


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
        share = work // max(1, programs // kind.kv_heads)
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
