"""Who sees what in a forward of packed rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Plan:
    """One packed row: where its queries lie in the batch, the blocks of its request, and who sees what.

    The queries lie at the places start..start+queries-1 of the cache. They stand at the positions of the same numbers; each
    sees those of its own `span` of them, 1 is causal, or all before `until`, which is then their row's end at least. Or they
    are a tree: query i stands at position start + depths[i] and sees the places before `start`, and place start + j where
    bit j of visible[i] is set.
    A row that was taken apart says in `slots` where each position lies, in place of blocks. With `anchored` a window begins
    where it does for the first of a span, for all of it.
    """

    offset: int
    queries: int
    start: int
    blocks: Sequence[int]
    until: int | None = None
    span: int = 1
    depths: Sequence[int] = ()
    visible: Sequence[int] = ()
    slots: Sequence[int] = ()
    anchored: bool = False

    @property
    def stop(self) -> int:
        """The place behind all that is seen."""
        return self.until or self.start + self.queries


def single_spans(plan: Plan, block_size: int) -> list[Plan]:
    """The same row, every span of it, or every query of a tree, a row of its own; one of a tree is then as if its branch were
    all that was ever computed, so that it has the bits that it has in a chain.

    What a query of a tree sees of it must stand, in the order of places, at depths 0, 1, 2, ...
    """
    if not plan.visible:
        return [
            Plan(
                plan.offset + i, min(plan.span, plan.queries - i), plan.start + i, plan.blocks, span=plan.span,
                anchored=plan.anchored,
            )
            for i in range(0, plan.queries, plan.span)
        ]  # fmt: skip
    slots = [plan.blocks[place // block_size] * block_size + place % block_size for place in range(plan.start + plan.queries)]
    cached, own = slots[: plan.start], slots[plan.start :]
    plans = []
    for i, (depth, bits) in enumerate(zip(plan.depths, plan.visible, strict=True)):
        branch = cached + [slot for j, slot in enumerate(own) if bits >> j & 1]
        plans.append(Plan(plan.offset + i, 1, plan.start + depth, (), len(branch), slots=branch))
    return plans
