"""Products with weights of 8 bits in Triton: a program takes some rows of the weight and all of x, and streams both through
tensor cores. The weight is the left operand, so that its rows, of which there are many, fill them."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance
from kernels.fusing import power_of_two
from kernels.triton_math import product, widened

DEPTH = 256
"""Numbers of a weight's row that a step of the loop takes."""
STAGES = 4
"""Steps whose weights are on their way at a time."""


@triton.jit
def weight_only_rows(
    x, weight, scale, bias, out, rows, outputs, size, x_row, weight_row,
    BIASED: tl.constexpr, ROWS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    output = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
    row, depth = tl.arange(0, ROWS), tl.arange(0, DEPTH)
    weights = weight + output.to(tl.int64)[:, None] * weight_row + depth[None, :]
    inputs = x + row[None, :] * x_row + depth[:, None]
    there, given = (output < outputs)[:, None], (row < rows)[None, :]
    sums = tl.zeros((OUTPUTS, ROWS), tl.float32)
    for start in range(0, size, DEPTH):
        left = size - start
        # A weight is not needed again in this product, and must not push x out of the cache.
        part = tl.load(weights + start, mask=there & (depth < left)[None, :], other=0.0, eviction_policy="evict_first")
        values = tl.load(inputs + start, mask=given & (depth < left)[:, None], other=0.0)
        sums = product(widened(part, values), values, sums)
    sums *= tl.load(scale + output, mask=output < outputs, other=0.0)[:, None]
    if BIASED:
        sums += tl.load(bias + output, mask=output < outputs, other=0.0).to(tl.float32)[:, None]
    target = out + row.to(tl.int64)[None, :] * outputs + output[:, None]
    tl.store(target, sums.to(out.dtype.element_ty), mask=there & given)


def weight_only(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    rows = x.reshape(-1, x.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    weight = weight if weight.stride(1) == 1 else weight.contiguous()
    outputs, size = weight.shape
    out = torch.empty(*x.shape[:-1], outputs, dtype=x.dtype, device=x.device)
    together = max(16, power_of_two(len(rows)))
    # Few outputs a program where there are few altogether, so that every multiprocessor reads.
    block = 16 if outputs <= 4096 else 32
    weight_only_rows[(triton.cdiv(outputs, block),)](
        rows, weight, scale, scale if bias is None else bias, out, len(rows), outputs, size, rows.stride(0), weight.stride(0),
        BIASED=bias is not None, ROWS=together, OUTPUTS=block, DEPTH=_depth(together, x.dtype), num_warps=4, num_stages=STAGES,
    )  # fmt: skip
    return out


def _depth(together: int, dtype: torch.dtype) -> int:
    """float32 activations take twice the registers and shared memory."""
    return DEPTH // (2 if together > 32 else 1) // (4 if dtype == torch.float32 else 1)


def _instance(dtype: str, weight: str, rows: int, outputs: int, depth: int) -> Instance:
    pointers = {"x": f"*{dtype}", "weight": f"*{weight}", "scale": "*fp32", "bias": f"*{dtype}", "out": f"*{dtype}"}
    counts = {"rows": "i32", **dict.fromkeys(("outputs", "size", "x_row", "weight_row"), "i32:16")}
    constants = {"BIASED": True, "ROWS": rows, "OUTPUTS": outputs, "DEPTH": depth}
    signature = {**pointers, **counts, **dict.fromkeys(constants, "constexpr")}
    return Instance(weight_only_rows, signature, constants, {"num_warps": 4, "num_stages": STAGES})


AOT = [
    _instance("bf16", "i8", 16, 16, DEPTH),
    _instance("bf16", "i8", 64, 32, DEPTH // 2),
    _instance("bf16", "fp8e4nv", 16, 32, DEPTH),
    _instance("fp32", "i8", 16, 16, DEPTH // 4),
    _instance("fp16", "fp8e4nv", 64, 32, DEPTH // 2),
]
