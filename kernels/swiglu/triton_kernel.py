"""Gated activations in Triton: a program takes a piece of a row."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance
from kernels.triton_math import activated

BLOCK = 1024


@triton.jit
def gate_rows(x, out, size, x_row, ACTIVATION: tl.constexpr, BLOCK: tl.constexpr):
    """Row r of `out`, contiguous, from the gates and, behind them, the ups of row r of x."""
    row = tl.program_id(0).to(tl.int64)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    here = column < size
    gate = tl.load(x + row * x_row + column, mask=here, other=0.0).to(tl.float32)
    up = tl.load(x + row * x_row + size + column, mask=here, other=0.0).to(tl.float32)
    tl.store(out + row * size + column, (activated(gate, ACTIVATION) * up).to(out.dtype.element_ty), mask=here)


def gated(gate_up: Tensor, activation: str) -> Tensor:
    rows = gate_up.reshape(-1, gate_up.shape[-1])
    rows = rows if rows.stride(1) == 1 else rows.contiguous()
    size = rows.shape[1] // 2
    out = torch.empty(*gate_up.shape[:-1], size, dtype=gate_up.dtype, device=gate_up.device)
    if out.numel():
        gate_rows[(len(rows), triton.cdiv(size, BLOCK))](rows, out, size, rows.stride(0), ACTIVATION=activation, BLOCK=BLOCK)
    return out


AOT = [
    Instance(
        gate_rows,
        {"x": "*bf16", "out": "*bf16", "size": "i32:16", "x_row": "i32:16", "ACTIVATION": "constexpr", "BLOCK": "constexpr"},
        {"ACTIVATION": activation, "BLOCK": BLOCK},
    )
    for activation in ("silu", "gelu", "gelu_tanh")
]
