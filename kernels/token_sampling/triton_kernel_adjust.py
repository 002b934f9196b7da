"""Penalties, biases and grammar masks in Triton: only logits that are touched are read or written. See `adjust`."""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from kernels.dispatch import Instance

ENTRIES = 256
BYTES = 256


@triton.jit
def penalise_kernel(
    logits, row, token, count, repetition, presence, frequency, entries, stride, BLOCK: tl.constexpr
):  # fmt: skip
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < entries
    at = logits + tl.load(row + i, there, 0) * stride + tl.load(token + i, there, 0)
    value, factor = tl.load(at, there, 0.0), tl.load(repetition + i, there, 1.0)
    value = tl.where(value > 0, value / factor, value * factor)
    seen = tl.load(count + i, there, 0.0)
    value = value - tl.load(frequency + i, there, 0.0) * seen - tl.where(seen > 0, tl.load(presence + i, there, 0.0), 0.0)
    tl.store(at, value, there)


@triton.jit
def add_bias_kernel(logits, row, token, value, entries, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    there = i < entries
    at = logits + tl.load(row + i, there, 0) * stride + tl.load(token + i, there, 0)
    tl.atomic_add(at, tl.load(value + i, there, 0.0), there, sem="relaxed")


@triton.jit
def apply_bitmask_kernel(logits, row, mask, vocabulary, width, stride, BLOCK: tl.constexpr):
    i = tl.program_id(0)
    byte = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    bits = tl.load(mask + i.to(tl.int64) * width + byte, byte < width, 255).to(tl.int32)
    token = byte[:, None] * 8 + tl.arange(0, 8)[None, :]
    banned = ((bits[:, None] >> tl.arange(0, 8)[None, :]) & 1) == 0
    tl.store(logits + tl.load(row + i) * stride + token, float("-inf"), banned & (token < vocabulary))


def penalise(
    logits: Tensor, row: Tensor, token: Tensor, count: Tensor, repetition: Tensor, presence: Tensor, frequency: Tensor
) -> None:
    columns = (column.contiguous() for column in (row, token, count, repetition, presence, frequency))
    grid = (triton.cdiv(len(row), ENTRIES),)
    penalise_kernel[grid](logits, *columns, len(row), logits.stride(0), BLOCK=ENTRIES)


def add_bias(logits: Tensor, row: Tensor, token: Tensor, value: Tensor) -> None:
    grid = (triton.cdiv(len(row), ENTRIES),)
    add_bias_kernel[grid](
        logits, row.contiguous(), token.contiguous(), value.contiguous(), len(row), logits.stride(0), BLOCK=ENTRIES
    )


def apply_bitmask(logits: Tensor, row: Tensor, mask: Tensor) -> None:
    vocabulary, width = logits.shape[1], mask.shape[1]
    grid = (len(row), triton.cdiv(vocabulary, 8 * BYTES))
    apply_bitmask_kernel[grid](
        logits, row.contiguous(), mask.contiguous(), vocabulary, width, logits.stride(0), BLOCK=BYTES
    )  # fmt: skip


AOT = [
    Instance(
        penalise_kernel,
        {
            "logits": "*fp32", "row": "*i64", "token": "*i64", "count": "*fp32", "repetition": "*fp32", "presence": "*fp32",
            "frequency": "*fp32", "entries": "i32", "stride": "i32", "BLOCK": "constexpr",
        },
        {"BLOCK": ENTRIES},
    ),
    Instance(
        add_bias_kernel,
        {
            "logits": "*fp32", "row": "*i64", "token": "*i64", "value": "*fp32", "entries": "i32", "stride": "i32",
            "BLOCK": "constexpr",
        },
        {"BLOCK": ENTRIES},
    ),
    Instance(
        apply_bitmask_kernel,
        {
            "logits": "*fp32", "row": "*i64", "mask": "*u8", "vocabulary": "i32", "width": "i32", "stride": "i32",
            "BLOCK": "constexpr",
        },
        {"BLOCK": BYTES},
    ),
]  # fmt: skip
