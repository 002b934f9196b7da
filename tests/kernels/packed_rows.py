"""Random packed rows of every kind over a paged store, for the tests of attention."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from kernels.paged_attention import (
    LayerKind,
    Layout,
    Plan,
    pack_plans,
    packed_attention,
    paged_attention,
    plan_groups,
    single_spans,
)
from service.procedures.types import TokenRow
from tests import trees

KINDS = ("decode", "prefill", "chunk", "verify", "spans", "canvas", "window canvas", "tree", "branches")
"""`branches` is a tree whose every query is a row of its own, with slots in place of blocks."""


@dataclass(frozen=True)
class Packed:
    """Rows with their queries [N, Hq, D] and a store that holds what they see."""

    plans: list[Plan]
    query: Tensor
    store: Tensor

    def kind(self, window: int | None) -> LayerKind:
        return LayerKind(window, self.query.shape[1], *self.store.shape[3:], self.store.element_size())

    def reference(self, window: int | None = None, scale: float | None = None, softcap: float | None = None) -> Tensor:
        """In float32, of the same numbers."""
        groups = plan_groups(self.plans, self.store.shape[1], window, self.query.device)
        return paged_attention(self.query.float(), self.store.float(), groups, scale, softcap)

    def attended(
        self, window: int | None = None, scale: float | None = None, softcap: float | None = None, programs: int = 8,
        invariant: bool = False, layout: Layout | None = None,
    ) -> Tensor:  # fmt: skip
        plans = pack_plans(self.plans, self.store.shape[1], [self.kind(window)], programs, invariant, layout)
        return packed_attention(self.query, self.store, plans.to(self.query.device), window, scale, softcap)

    def some(self, which: Sequence[int]) -> Packed:
        """The same rows in another batch, over the same store."""
        plans, queries, at = [], [], 0
        for i in which:
            plan = self.plans[i]
            plans.append(replace(plan, offset=at))
            queries.append(self.query[plan.offset : plan.offset + plan.queries])
            at += plan.queries
        return Packed(plans, torch.cat(queries), self.store)

    def of_row(self, i: int, out: Tensor) -> Tensor:
        return out[self.plans[i].offset : self.plans[i].offset + self.plans[i].queries]


def random_rows(
    seed: int, kinds: Sequence[str], block_size: int = 4, heads: int = 4, kv_heads: int = 2, head_dim: int = 64,
    dtype: torch.dtype = torch.float32, longest: int = 90, device: torch.device | str = "cpu",
) -> Packed:  # fmt: skip
    """A row of each of `kinds`, behind up to `longest` places; blocks lie anywhere in the store."""
    chance, generator = random.Random(seed), torch.Generator().manual_seed(seed)
    size = len(kinds) * (longest + 64) // block_size + 2 * len(kinds)
    free = torch.randperm(size, generator=generator).tolist()
    plans: list[Plan] = []
    offset = 0
    for kind in kinds:
        start = chance.choice((0, block_size, chance.randrange(longest), chance.randrange(longest), longest - 1))
        length = chance.choice((2, 5, 17, 40))
        plan = _plan(kind, seed, offset, start, length, chance)
        count = (plan.stop - 1) // block_size + 1
        blocks, free = free[:count], free[count:]
        plan = replace(plan, blocks=blocks)
        plans += single_spans(plan, block_size) if kind == "branches" else [plan]
        offset += plan.queries
    store = torch.randn(size, block_size, 2, kv_heads, head_dim, generator=generator).to(dtype)
    query = torch.randn(offset, heads, head_dim, generator=generator).to(dtype)
    return Packed(plans, query.to(device), store.to(device))


def _plan(kind: str, seed: int, offset: int, start: int, length: int, chance: random.Random) -> Plan:
    match kind:
        case "decode":
            return Plan(offset, 1, start, ())
        case "prefill":
            return Plan(offset, length, 0, ())
        case "verify":
            return Plan(offset, 4, start, ())
        case "spans":
            return Plan(offset, length, start, (), span=chance.choice((3, 8)))
        case "canvas":
            return Plan(offset, length, start, (), until=start + length + chance.choice((0, 9)))
        case "window canvas":
            return Plan(offset, length, start, (), span=length, anchored=True)
        case "tree" | "branches":
            row = TokenRow.tree(0, start, trees.random_draft(seed, chance.choice((0, 5, 40))), chance.choice((0, 0, 1)))
            row = row.with_drafts(31) if len(row.tokens) > 64 else row
            return Plan(offset, len(row.tokens), start, (), depths=row.depths, visible=row.visible)
    return Plan(offset, length, start, ())
