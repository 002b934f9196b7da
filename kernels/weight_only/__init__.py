"""Matrix products of a few rows with weights of 8 bits, int8 or fp8 (e4m3), and a scale for each row of them.

A decode step reads every weight once and does little with it: such a product takes as long as reading does, so that weights
of half the bytes make it twice as fast, provided that they are widened in registers and never in memory.
"""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.fusing import fuses, widens
from kernels.weight_only import reference

__all__ = ["DTYPES", "MOST_ROWS", "fits", "weight_only"]

DTYPES = (torch.int8, torch.float8_e4m3fn)
MOST_ROWS = 64
"""With more, a product is no longer bound by reading its weights: widening them once and multiplying by a library is faster."""


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether the kernel is to run on activations x [..., in]: few enough rows, where Triton runs and knows such weights."""
    return fuses(x) and 0 < x.numel() <= MOST_ROWS * x.shape[-1] and widens(weight)


def weight_only(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None = None) -> Tensor:
    """(x weight^T) * scale + bias, [..., out] of the dtype of x, with sums in float32.

    x: [..., in]. weight: [out, in], one of `DTYPES`. scale: float32 [out]. bias: [out]. A row's result depends on nothing but
    the row and on which power of two, from 16 on, covers the number of rows.
    Raises ValueError for a weight of another dtype or shapes that do not fit.
    """
    out, size = weight.shape
    if weight.dtype not in DTYPES:
        raise ValueError(f"weight must be int8 or float8_e4m3fn, not {weight.dtype}")
    if x.shape[-1] != size or scale.shape != (out,):
        raise ValueError(f"x {list(x.shape)}, weight {list(weight.shape)} and scale {list(scale.shape)} do not fit")
    if fits(x, weight):
        from kernels.weight_only.triton_kernel import weight_only as fused

        return fused(x, weight, scale, bias)
    return reference.weight_only(x, weight, scale, bias)
