"""Grouped products in Triton: a program takes some pairs of one expert and some columns of its output.

How many programs an expert needs is known on the device alone, so there are as many as there could need to be: one more for
each expert than full ones. Each finds its expert from where the experts' pairs end; those that are too many do nothing.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance
from kernels.fusing import power_of_two
from kernels.grouped_product.experts import ExpertMatrices, Routing
from kernels.triton_math import product, widened

TYPES = {
    torch.float32: tl.float32, torch.bfloat16: tl.bfloat16, torch.float16: tl.float16, torch.int8: tl.int8,
    torch.float8_e4m3fn: tl.float8e4nv,
}  # fmt: skip


@triton.jit
def grouped_rows(
    x, addresses, biases, order, ends, weights, out, experts, outputs, size, x_row, weight_row, per_row,
    TYPE: tl.constexpr, SCALED: tl.constexpr, BIASED: tl.constexpr, WEIGHTED: tl.constexpr, EXPERTS: tl.constexpr,
    PAIRS: tl.constexpr, OUTPUTS: tl.constexpr, DEPTH: tl.constexpr,
):  # fmt: skip
    """Row of x of a pair: its number divided by `per_row`. `biases` gives the type of biases alone."""
    each = tl.arange(0, EXPERTS)
    end = tl.load(ends + each, mask=each < experts, other=0)
    start = tl.load(ends + each - 1, mask=(each > 0) & (each < experts), other=0)
    last_tile = tl.cumsum((end - start + PAIRS - 1) // PAIRS, axis=0)
    tile = tl.program_id(1).to(tl.int64)
    expert = tl.sum((last_tile <= tile).to(tl.int32), axis=0)
    if expert < experts:
        before = tl.max(tl.where(last_tile <= tile, last_tile, 0), axis=0)
        stop = tl.load(ends + expert)
        first = tl.max(tl.where(last_tile <= tile, end, 0), axis=0) + (tile - before) * PAIRS
        place = first + tl.arange(0, PAIRS)
        pair = tl.load(order + place, mask=place < stop, other=0)
        column = tl.program_id(0) * OUTPUTS + tl.arange(0, OUTPUTS)
        depth = tl.arange(0, DEPTH)
        given, there = (place < stop)[:, None], (column < outputs)[None, :]
        matrix = tl.load(addresses + expert).to(tl.pointer_type(TYPE))
        matrix = tl.multiple_of(matrix, 16)
        inputs = x + (pair // per_row)[:, None] * x_row + depth[None, :]
        values = matrix + column.to(tl.int64)[None, :] * weight_row + depth[:, None]
        sums = tl.zeros((PAIRS, OUTPUTS), tl.float32)
        for begin in range(0, size, DEPTH):
            left = size - begin
            part = tl.load(inputs + begin, mask=given & (depth < left)[None, :], other=0.0)
            by = tl.load(values + begin, mask=there & (depth < left)[:, None], other=0.0)
            sums = product(part, widened(by, part), sums)
        if SCALED:
            scale = tl.load(addresses + experts + expert).to(tl.pointer_type(tl.float32))
            sums *= tl.load(scale + column, mask=column < outputs, other=0.0)[None, :]
        if BIASED:
            bias = tl.load(addresses + 2 * experts + expert).to(tl.pointer_type(biases.dtype.element_ty))
            sums += tl.load(bias + column, mask=column < outputs, other=0.0).to(tl.float32)[None, :]
        if WEIGHTED:
            sums *= tl.load(weights + pair, mask=place < stop, other=0.0).to(tl.float32)[:, None]
        target = out + pair[:, None] * outputs + column[None, :]
        tl.store(target, sums.to(out.dtype.element_ty), mask=given & there)


def grouped_product(x: Tensor, matrices: ExpertMatrices, routing: Routing, weights: Tensor | None) -> Tensor:
    x = x if x.stride(1) == 1 else x.contiguous()
    pairs, order_and_ends = routing.chosen.numel(), routing.sorted
    out = torch.empty(pairs, matrices.outputs, dtype=x.dtype, device=x.device)
    if not out.numel():
        return out
    tall, wide, deep = _tile(pairs, matrices.count, x.dtype)
    tiles = min(pairs, pairs // tall + matrices.count)
    grouped_rows[(triton.cdiv(matrices.outputs, wide), tiles)](
        x, matrices.addresses, matrices.biases[0] if matrices.biases else x, *order_and_ends,
        x if weights is None else weights.contiguous(), out, matrices.count, matrices.outputs, matrices.inputs, x.stride(0),
        matrices.weights[0].stride(0), pairs // len(x),
        TYPE=TYPES[matrices.dtype], SCALED=bool(matrices.scales), BIASED=bool(matrices.biases), WEIGHTED=weights is not None,
        EXPERTS=power_of_two(matrices.count), PAIRS=tall, OUTPUTS=wide, DEPTH=deep,
        num_warps=4 if tall < 128 else 8, num_stages=3,
    )  # fmt: skip
    return out


def _tile(pairs: int, experts: int, dtype: torch.dtype) -> tuple[int, int, int]:
    """Pairs, outputs and depth of a program: few pairs where experts have few each, as in decoding, which reads the matrices
    and little else."""
    expected = pairs / experts
    tall = 16 if expected <= 16 else 64 if expected <= 128 else 128
    wide = 64 if tall == 16 else 128
    return (min(tall, 64), 64, 32) if dtype == torch.float32 else (tall, wide, 64)


def _instance(dtype: str, kind: tl.dtype, tile: tuple[int, int, int], scaled: bool, weighted: bool) -> Instance:
    signature = {"x": f"*{dtype}", "addresses": "*i64", "biases": f"*{dtype}", "order": "*i64", "ends": "*i64"}
    signature |= {"weights": f"*{dtype}", "out": f"*{dtype}", "experts": "i32", "per_row": "i32"}
    signature |= dict.fromkeys(("outputs", "size", "x_row", "weight_row"), "i32:16")
    constants = {
        "TYPE": kind, "SCALED": scaled, "BIASED": scaled, "WEIGHTED": weighted, "EXPERTS": 128, "PAIRS": tile[0],
        "OUTPUTS": tile[1], "DEPTH": tile[2],
    }  # fmt: skip
    options = {"num_warps": 4 if tile[0] < 128 else 8, "num_stages": 3}
    return Instance(grouped_rows, {**signature, **dict.fromkeys(constants, "constexpr")}, constants, options)


AOT = [
    _instance("bf16", tl.bfloat16, (16, 64, 64), False, False),
    _instance("bf16", tl.bfloat16, (128, 128, 64), False, True),
    _instance("bf16", tl.int8, (16, 64, 64), True, True),
    _instance("bf16", tl.float8e4nv, (64, 128, 64), True, False),
    _instance("fp32", tl.float32, (64, 64, 32), False, True),
]
