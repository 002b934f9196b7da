"""Adaptive norms in Triton: a program takes one token, so that gate, sum, norm, scale and shift are one pass over memory."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance
from kernels.fusing import power_of_two, rows_of


@triton.jit
def modulate_rows(
    x, branch, gate, shift, scale, total, out, tokens, size, x_row, x_token, branch_row, branch_token, gate_row, shift_row,
    scale_row, eps, GATED: tl.constexpr, MODULATED: tl.constexpr, CENTRED: tl.constexpr, SIZE: tl.constexpr,
):  # fmt: skip
    """`total` and `out` are contiguous."""
    program = tl.program_id(0).to(tl.int64)
    row, token = program // tokens, program % tokens
    column = tl.arange(0, SIZE)
    here = column < size
    value = tl.load(x + row * x_row + token * x_token + column, mask=here, other=0.0).to(tl.float32)
    if GATED:
        added = tl.load(branch + row * branch_row + token * branch_token + column, mask=here, other=0.0).to(tl.float32)
        value += tl.load(gate + row * gate_row + column, mask=here, other=0.0).to(tl.float32) * added
        rounded = value.to(total.dtype.element_ty)
        tl.store(total + program * size + column, rounded, mask=here)
        value = rounded.to(tl.float32)
    if MODULATED:
        if CENTRED:
            value = tl.where(here, value - tl.sum(value, axis=0) / size, 0.0)
        value *= tl.rsqrt(tl.sum(value * value, axis=0) / size + eps)
        value *= 1.0 + tl.load(scale + row * scale_row + column, mask=here, other=0.0).to(tl.float32)
        value += tl.load(shift + row * shift_row + column, mask=here, other=0.0).to(tl.float32)
        tl.store(out + program * size + column, value.to(out.dtype.element_ty), mask=here)


def modulate(
    x: Tensor, gated: tuple[Tensor, Tensor] | None, modulation: tuple[Tensor, Tensor] | None, eps: float, centred: bool
) -> tuple[Tensor, Tensor]:
    """x + gate * branch for `gated` = (gate, branch), else x; and that normed under `modulation` = (shift, scale), else x."""
    rows, tokens, size = x.shape
    stream = rows_of(x)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device) if gated else x
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device) if modulation else x
    gate, branch = (_row(gated[0]), rows_of(gated[1])) if gated else (stream, stream)
    shift, scale = map(_row, modulation) if modulation else (stream, stream)
    wide = power_of_two(size)
    if x.numel():
        modulate_rows[(rows * tokens,)](
            stream, branch, gate, shift, scale, total, out, tokens, size, stream.stride(0), stream.stride(1), branch.stride(0),
            branch.stride(1), gate.stride(0), shift.stride(0), scale.stride(0), eps,
            GATED=gated is not None, MODULATED=modulation is not None, CENTRED=centred, SIZE=wide, num_warps=_warps(wide),
        )  # fmt: skip
    return total, out


def _row(vector: Tensor) -> Tensor:
    return vector if vector.stride(-1) == 1 else vector.contiguous()


def _warps(wide: int) -> int:
    return min(16, max(1, wide // 512))


def _instance(dtype: str, size: int, gated: bool, modulated: bool, centred: bool) -> Instance:
    pointers = ("x", "branch", "gate", "shift", "scale", "total", "out")
    strides = ("size", "x_row", "x_token", "branch_row", "branch_token", "gate_row", "shift_row", "scale_row")
    constants = {"GATED": gated, "MODULATED": modulated, "CENTRED": centred, "SIZE": size}
    signature = {**dict.fromkeys(pointers, f"*{dtype}"), "tokens": "i32", **dict.fromkeys(strides, "i32:16"), "eps": "fp32"}
    return Instance(
        modulate_rows, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, {"num_warps": _warps(size)}
    )


AOT = [
    _instance("bf16", 2048, True, True, True),
    _instance("bf16", 256, False, True, False),
    _instance("fp32", 1024, True, False, False),
]
