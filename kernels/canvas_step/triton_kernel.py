"""Selection and write-back of canvases in Triton: a program a canvas, which compares every position with every other."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance

THRESHOLD, FACTOR, MARGIN, ENTROPY, ENTROPY_BOUND = (tl.constexpr(i) for i in (0, 1, 3, 4, 5))


@triton.jit
def measured(at, there, confidence, entropy, margin, rule):
    """What the rule ranks positions by, float64; -inf where nothing was read."""
    sure = tl.load(confidence + at, there, 0.0).to(tl.float64)
    spent = tl.load(entropy + at, there, 0.0).to(tl.float64)
    lead = tl.load(margin + at, there, 0.0).to(tl.float64)
    measure = tl.where(rule == MARGIN, lead, tl.where(rule >= ENTROPY, -spent, sure))
    return tl.where(there, measure, float("-inf")), sure, spent


@triton.jit
def select_kernel(
    canvas, reading, token, confidence, entropy, margin, rules, values, dues, leftmosts, chosen_out, length,
    LENGTH: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0)
    rule, value, due, leftmost = tl.load(rules + row), tl.load(values + row), tl.load(dues + row), tl.load(leftmosts + row)
    reading += row * length
    i = tl.arange(0, LENGTH)
    at = tl.load(reading + i, i < length, -1)
    there = at >= 0
    measure, sure, _own = measured(at, there, confidence, entropy, margin, rule)
    rank, before = tl.zeros([LENGTH], tl.int32), tl.zeros([LENGTH], tl.float64)
    for start in range(0, length, TILE):
        j = start + tl.arange(0, TILE)
        other_at = tl.load(reading + j, j < length, -1)
        other_there = other_at >= 0
        other, _sure, spent = measured(other_at, other_there, confidence, entropy, margin, rule)
        higher = other[None, :] > measure[:, None]
        earlier = (other[None, :] == measure[:, None]) & (j[None, :] < i[:, None])
        ahead = other_there[None, :] & (higher | earlier)
        rank += tl.sum(ahead.to(tl.int32), 1)
        before += tl.sum(tl.where(ahead, spent[None, :], 0.0), 1)
    chosen = rank < due
    if rule == THRESHOLD:
        chosen = chosen | (sure > value)
    if rule == FACTOR:
        fails = there & ((rank + 2).to(tl.float64) * (1.0 - sure) >= value)
        chosen = chosen | (rank < tl.min(tl.where(fails, rank, LENGTH)))
    if rule == ENTROPY_BOUND:
        chosen = chosen | (before <= value)
    if leftmost != 0:
        chosen = chosen | (i == tl.min(tl.where(there, i, LENGTH)))
    chosen = chosen & there
    tl.store(canvas + row * length + i, tl.load(token + at, chosen, 0), chosen)
    tl.store(chosen_out + row * length + i, chosen.to(tl.int8), i < length)


def select(
    canvas: Tensor, reading: Tensor, token: Tensor, confidence: Tensor, entropy: Tensor, margin: Tensor, rule: Tensor,
    value: Tensor, due: Tensor, leftmost: Tensor,
) -> Tensor:  # fmt: skip
    """See `kernels.canvas_step.select`; the canvas must be contiguous."""
    count, length = canvas.shape
    assert canvas.is_contiguous() and canvas.dtype == reading.dtype == torch.int64
    chosen = torch.empty(count, length, dtype=torch.int8, device=canvas.device)
    padded = max(16, triton.next_power_of_2(length))
    select_kernel[(count,)](
        canvas, reading.contiguous(), token, confidence, entropy, margin, rule.int(), value.double(), due.int(),
        leftmost.to(torch.int8), chosen, length, LENGTH=padded, TILE=_tile(padded), num_warps=_warps(padded),
    )  # fmt: skip
    return chosen.bool()


def _tile(padded: int) -> int:
    """Positions that all are compared with at a time, as many as registers hold."""
    return 16 if padded <= 256 else 4


def _warps(padded: int) -> int:
    return max(1, min(16, padded // 64))


_SELECT = {
    "canvas": "*i64", "reading": "*i64", "token": "*i64", "confidence": "*fp32", "entropy": "*fp32", "margin": "*fp32",
    "rules": "*i32", "values": "*fp64", "dues": "*i32", "leftmosts": "*i8", "chosen_out": "*i8", "length": "i32",
    "LENGTH": "constexpr", "TILE": "constexpr",
}  # fmt: skip
AOT = [
    Instance(select_kernel, _SELECT, {"LENGTH": length, "TILE": _tile(length)}, {"num_warps": _warps(length)})
    for length in (16, 256, 1024)
]
