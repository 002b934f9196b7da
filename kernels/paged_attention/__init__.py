"""Attention of packed query rows of mixed kinds over a paged cache.

Two ways: `paged_attention` over `RowGroup`s in plain torch, the reference and what runs on a CPU; and `packed_attention` over
`PackedPlans`, by Triton, whose inputs are a flat tensor of a fixed layout. `triton_for` of the store says which one to prepare.
"""

from __future__ import annotations

from torch import Tensor

from kernels.paged_attention.layout import LayerKind, Layout, PackedPlans
from kernels.paged_attention.packing import pack_plans
from kernels.paged_attention.plan import Plan, single_spans
from kernels.paged_attention.reference import RowGroup, paged_attention, plan_groups
from kernels.paged_attention.tables import Tables

__all__ = [
    "LayerKind", "Layout", "PackedPlans", "Plan", "RowGroup", "Tables", "pack_plans", "packed_attention", "paged_attention",
    "plan_groups", "single_spans",
]  # fmt: skip


def packed_attention(
    query: Tensor, store: Tensor, plans: PackedPlans, window: int | None, scale: float | None = None,
    softcap: float | None = None, out: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """As `paged_attention`, by Triton: see `triton_kernel.attend`. Needs a GPU, or Triton's interpreter."""
    from kernels.paged_attention import triton_kernel

    return triton_kernel.attend(query, store, plans, window, scale, softcap, out)
