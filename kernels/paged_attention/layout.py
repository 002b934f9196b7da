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

import torch
from torch import Tensor

from kernels.fusing import power_of_two

ROW, TREE, TASK, MERGE = 8, 4, 8, 8
"""Numbers of a row (offset, queries, start, stop, span, flags, where its table and its tree begin), of a token of a tree
(depth, low and high half of its mask), of a task (row, first query, queries, first place, the place up to which everything is
seen by all, last place + 1, its partial result or -1), of a merge (row, first query, queries, first partial result, number).
They are filled up to multiples of 16 bytes, as the kernels expect every table to begin at one."""

ANCHORED, APART = 1, 2
"""Flags of a row: see `Plan.anchored`; its table holds slots, not blocks."""


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
        return self.entries_begin + self.entries

    @property
    def entries_begin(self) -> int:
        """Numbers before those of the block tables, which come last: of them only as many are copied as there are."""
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
        return self.numbers[self.layout.entries_begin :]

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
