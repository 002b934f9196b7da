"""Norms in Triton: a program holds whole rows in registers, so that each number is read and written once."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance
from kernels.fusing import power_of_two, rows_of

ELEMENTS = 2048
"""That a program takes at least, of several rows where they are short (norms of heads)."""


@triton.jit
def norm_rows(
    x, branch, weight, bias, total, out, rows, inner, size, x_outer, x_inner, branch_outer, branch_inner, eps,
    ADDED: tl.constexpr, CENTRED: tl.constexpr, WEIGHTED: tl.constexpr, BIASED: tl.constexpr,
    ROWS: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """Row r of x is row r % inner of part r // inner; `total` and `out` are contiguous."""
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, SIZE)
    here = (row < rows)[:, None] & (column < size)[None, :]
    start = (row // inner * x_outer + row % inner * x_inner)[:, None]
    value = tl.load(x + start + column[None, :], mask=here, other=0.0).to(tl.float32)
    place = row[:, None] * size + column[None, :]
    if ADDED:
        start = (row // inner * branch_outer + row % inner * branch_inner)[:, None]
        value += tl.load(branch + start + column[None, :], mask=here, other=0.0).to(tl.float32)
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + place, rounded, mask=here)
        value = rounded.to(tl.float32)
    if CENTRED:
        mean = tl.sum(value, axis=1) / size
        value = tl.where(here, value - mean[:, None], 0.0)
    variance = tl.sum(value * value, axis=1) / size
    value *= tl.rsqrt(variance + eps)[:, None]
    if WEIGHTED:
        value *= tl.load(weight + column, mask=column < size, other=0.0).to(tl.float32)[None, :]
    if BIASED:
        value += tl.load(bias + column, mask=column < size, other=0.0).to(tl.float32)[None, :]
    tl.store(out + place, value.to(out.dtype.element_ty), mask=here)


def normalised(
    x: Tensor, branch: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """The norm of x (+ branch), and the sum, which is x itself where there is no branch."""
    parts = rows_of(x)
    added = parts if branch is None else rows_of(branch)
    outer, inner, size = parts.shape
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = x if branch is None else torch.empty_like(out)
    wide = power_of_two(size)
    together = max(1, ELEMENTS // wide)
    norm_rows[(triton.cdiv(outer * inner, together),)](
        parts, added, x if weight is None else weight, x if bias is None else bias, total, out,
        outer * inner, inner, size, parts.stride(0), parts.stride(1), added.stride(0), added.stride(1), eps,
        ADDED=branch is not None, CENTRED=centred, WEIGHTED=weight is not None, BIASED=bias is not None,
        ROWS=together, SIZE=wide, num_warps=min(16, max(4, wide // 512)),
    )  # fmt: skip
    return out, total


def _instance(stream: str, size: int, added: bool, centred: bool) -> Instance:
    pointers = {name: f"*{stream}" for name in ("x", "branch", "total", "out")}
    counts = {"rows": "i32", "inner": "i32"}
    counts |= dict.fromkeys(("size", "x_outer", "x_inner", "branch_outer", "branch_inner"), "i32:16")
    together = max(1, ELEMENTS // size)
    constants = {
        "ADDED": added, "CENTRED": centred, "WEIGHTED": True, "BIASED": centred, "ROWS": together, "SIZE": size,
    }  # fmt: skip
    signature = {**pointers, "weight": "*fp32", "bias": "*fp32", **counts, "eps": "fp32"}
    return Instance(
        norm_rows, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, {"num_warps": min(16, max(4, size // 512))}
    )


AOT = [_instance("bf16", 4096, True, False), _instance("bf16", 128, False, False), _instance("fp32", 1024, True, True)]
