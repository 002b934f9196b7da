"""Norm, rotary embedding and the write into a paged store by Triton: every number is read once and written once."""

from __future__ import annotations

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from kernels.fusing import power_of_two
from kernels.kv_write.projected import Projected

HEADS_AT_ONCE = 4
"""Heads that one program turns."""

WARPS = 2


@triton.jit
def _part(
    x, token, first, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, STRIDE: tl.constexpr, BEGIN: tl.constexpr, END: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Numbers BEGIN..END of some heads, float32 [BLOCK_H, BLOCK], 0 where there are none."""
    h, d = first + tl.arange(0, BLOCK_H), BEGIN + tl.arange(0, BLOCK)
    held = (h < HEADS)[:, None] & (d < END)[None, :]
    return tl.load(x + token * STRIDE + h[:, None] * HEAD_DIM + d[None, :], mask=held, other=0.0).to(tl.float32)


@triton.jit
def _put(
    target, x, first, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BEGIN: tl.constexpr, END: tl.constexpr,
    BLOCK: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    h, d = first + tl.arange(0, BLOCK_H), BEGIN + tl.arange(0, BLOCK)
    held = (h < HEADS)[:, None] & (d < END)[None, :]
    tl.store(target + h[:, None] * HEAD_DIM + d[None, :], x.to(target.dtype.element_ty), mask=held)


@triton.jit
def _heads(
    x, weight, cos, sin, target, token, first, eps,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, STRIDE: tl.constexpr, TURNED: tl.constexpr, NORMED: tl.constexpr,
    WEIGHTED: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Some heads of one token, normed and turned, to `target`, where the token's first head goes. A head is two halves of what
    turns, and the rest."""
    HALF: tl.constexpr = TURNED // 2
    squares = tl.zeros((BLOCK_H,), tl.float32)
    if TURNED > 0:
        low = _part(x, token, first, HEADS, HEAD_DIM, STRIDE, 0, HALF, BLOCK_HALF, BLOCK_H)
        high = _part(x, token, first, HEADS, HEAD_DIM, STRIDE, HALF, TURNED, BLOCK_HALF, BLOCK_H)
        squares += tl.sum(low * low, 1) + tl.sum(high * high, 1)
    if TURNED < HEAD_DIM:
        rest = _part(x, token, first, HEADS, HEAD_DIM, STRIDE, TURNED, HEAD_DIM, BLOCK_REST, BLOCK_H)
        squares += tl.sum(rest * rest, 1)
    factor = 1.0 / tl.sqrt(squares / HEAD_DIM + eps)
    if TURNED > 0:
        i = tl.arange(0, BLOCK_HALF)
        there = i < HALF
        if NORMED:
            low, high = low * factor[:, None], high * factor[:, None]
        if WEIGHTED:
            low *= tl.load(weight + i, mask=there, other=0.0).to(tl.float32)[None, :]
            high *= tl.load(weight + HALF + i, mask=there, other=0.0).to(tl.float32)[None, :]
        at = token * TURNED + i
        cos_low, sin_low = tl.load(cos + at, mask=there, other=0.0), tl.load(sin + at, mask=there, other=0.0)
        cos_high, sin_high = tl.load(cos + at + HALF, mask=there, other=0.0), tl.load(sin + at + HALF, mask=there, other=0.0)
        turned_low = low * cos_low[None, :] + high * sin_low[None, :]
        turned_high = high * cos_high[None, :] + low * sin_high[None, :]
        _put(target, turned_low, first, HEADS, HEAD_DIM, 0, HALF, BLOCK_HALF, BLOCK_H)
        _put(target, turned_high, first, HEADS, HEAD_DIM, HALF, TURNED, BLOCK_HALF, BLOCK_H)
    if TURNED < HEAD_DIM:
        d = TURNED + tl.arange(0, BLOCK_REST)
        if NORMED:
            rest = rest * factor[:, None]
        if WEIGHTED:
            rest *= tl.load(weight + d, mask=d < HEAD_DIM, other=0.0).to(tl.float32)[None, :]
        _put(target, rest, first, HEADS, HEAD_DIM, TURNED, HEAD_DIM, BLOCK_REST, BLOCK_H)


# Slots are a part of a staged buffer, whose beginning lies anywhere.
@triton.jit(do_not_specialize_on_alignment=["slots"])
def kv_write_kernel(
    query, key, value, query_weight, key_weight, cos, sin, out, store, slots, eps,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, QUERY_STRIDE: tl.constexpr, KEY_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr, TURNED: tl.constexpr, NORMED: tl.constexpr, NORMED_VALUES: tl.constexpr,
    BLOCK_HALF: tl.constexpr, BLOCK_REST: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_H: tl.constexpr,
):  # fmt: skip
    """Program (token, BLOCK_H heads): first those of queries, then those of keys together with the values."""
    token, number = tl.program_id(0).to(tl.int64), tl.program_id(1)
    OF_QUERIES: tl.constexpr = (HEADS + BLOCK_H - 1) // BLOCK_H
    if number < OF_QUERIES:
        _heads(
            query, query_weight, cos, sin, out + token * (HEADS * HEAD_DIM), token, number * BLOCK_H, eps, HEADS, HEAD_DIM,
            QUERY_STRIDE, TURNED, NORMED, NORMED, BLOCK_HALF, BLOCK_REST, BLOCK_H,
        )  # fmt: skip
    else:
        slot = tl.load(slots + token).to(tl.int64)
        if slot >= 0:
            first = (number - OF_QUERIES) * BLOCK_H
            keys = store + slot * (2 * KV_HEADS * HEAD_DIM)
            _heads(
                key, key_weight, cos, sin, keys, token, first, eps, KV_HEADS, HEAD_DIM, KEY_STRIDE, TURNED, NORMED, NORMED,
                BLOCK_HALF, BLOCK_REST, BLOCK_H,
            )  # fmt: skip
            _heads(
                value, value, cos, sin, keys + KV_HEADS * HEAD_DIM, token, first, eps, KV_HEADS, HEAD_DIM, VALUE_STRIDE, 0,
                NORMED_VALUES, False, BLOCK_HALF, BLOCK_D, BLOCK_H,
            )  # fmt: skip


def kv_write(projected: Projected, store: Tensor, slots: Tensor, out: Tensor | None = None) -> Tensor:
    """As `reference.kv_write`; the queries go into `out`, [N, Hq, D], where it is given."""
    p = projected
    if not store.is_contiguous():
        raise ValueError("the store must lie closely")
    if out is None:
        out = p.query.new_empty(p.query.shape)
    heads, kv_heads, dim = p.query.shape[1], p.key.shape[1], p.query.shape[2]
    # Pointers that are not looked at must still be some.
    cos, sin = p.angles if p.angles is not None else (p.query, p.query)
    weights = [p.query if weight is None else weight for weight in (p.query_weight, p.key_weight)]
    strides = (p.query.stride(0), p.key.stride(0), p.value.stride(0))
    turned = 0 if p.angles is None else cos.shape[-1]
    constants = _constants(heads, kv_heads, dim, strides, turned, p.query_weight is not None, p.normed_values)
    programs = -(-heads // HEADS_AT_ONCE) + -(-kv_heads // HEADS_AT_ONCE)
    kv_write_kernel[(len(slots), programs)](
        p.query, p.key, p.value, *weights, cos, sin, out, store, slots, p.eps, **constants, num_warps=WARPS
    )
    return out


def _constants(
    heads: int, kv_heads: int, dim: int, strides: tuple[int, int, int], turned: int, normed: bool, normed_values: bool
) -> dict[str, Any]:
    return {
        "HEADS": heads, "KV_HEADS": kv_heads, "HEAD_DIM": dim, "QUERY_STRIDE": strides[0], "KEY_STRIDE": strides[1],
        "VALUE_STRIDE": strides[2], "TURNED": turned, "NORMED": normed, "NORMED_VALUES": normed_values,
        "BLOCK_HALF": power_of_two(turned // 2), "BLOCK_REST": power_of_two(dim - turned),
        "BLOCK_D": power_of_two(dim), "BLOCK_H": HEADS_AT_ONCE,
    }  # fmt: skip


def _instance(
    dtype: str, heads: int, kv_heads: int, dim: int, turned: int, normed: bool = True, normed_values: bool = False
) -> tuple[Any, dict[str, str], dict[str, Any], dict[str, int]]:
    """Over the parts of one stacked matrix; weights and angles are float32 where they are used."""
    constants = _constants(heads, kv_heads, dim, ((heads + 2 * kv_heads) * dim,) * 3, turned, normed, normed_values)
    pointers = dict.fromkeys(("query", "key", "value"), f"*{dtype}")
    weights = dict.fromkeys(("query_weight", "key_weight"), "*fp32" if normed else f"*{dtype}")
    angles = dict.fromkeys(("cos", "sin"), "*fp32" if turned else f"*{dtype}")
    targets = {"out": f"*{dtype}", "store": f"*{dtype}", "slots": "*i64", "eps": "fp32"}
    signature = {**pointers, **weights, **angles, **targets, **dict.fromkeys(constants, "constexpr")}
    return kv_write_kernel, signature, constants, {"num_warps": WARPS}


AOT = [
    _instance("bf16", 32, 8, 128, 128),
    _instance("bf16", 28, 4, 128, 128, normed=False),
    _instance("fp16", 32, 32, 96, 48, normed=False),
    _instance("bf16", 8, 4, 256, 0, normed_values=True),
    _instance("fp32", 9, 3, 64, 64),
]
"""What the tests compile ahead of time."""
