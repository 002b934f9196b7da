"""Attention of packed query rows of mixed kinds over a paged cache."""

from kernels.paged_attention.plan import Plan, single_spans
from kernels.paged_attention.reference import RowGroup, paged_attention, plan_groups

__all__ = ["Plan", "RowGroup", "paged_attention", "plan_groups", "single_spans"]
