"""The blocks and the head of a flow transformer in one call: see flow.cpp."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from kernels.cpu.library import library
from kernels.cpu.linear import LinearStruct, PackedLinear, pointer

LARGEST_HEAD = 512


@dataclass(frozen=True)
class FlowBlockWeights:
    """float32 beside the packed matrices: `modulation` [6, width] (shift, scale and gate of attention, then of the MLP),
    `gains` [heads] of the normalised queries, `filters` [9, width] and `bias` [width] of the 3x3 convolution."""

    qkv: PackedLinear
    out: PackedLinear
    up: PackedLinear
    down: PackedLinear
    modulation: Tensor
    gains: Tensor
    filters: Tensor
    bias: Tensor


@dataclass(frozen=True)
class FlowWeights:
    """`decode` and `head` follow the last block; `cosines` and `sines` float32 [patches, head_dim] turn the patches."""

    blocks: Sequence[FlowBlockWeights]
    decode: PackedLinear
    head: PackedLinear
    cosines: Tensor
    sines: Tensor
    width: int
    heads: int
    side: int
    epsilon: float


class _Block(ctypes.Structure):
    _fields_ = [
        *((name, LinearStruct) for name in ("qkv", "out", "up", "down")),
        *((name, ctypes.c_void_p) for name in ("modulation", "gains", "filters", "bias")),
    ]


class _Flow(ctypes.Structure):
    _fields_ = [
        ("blocks", ctypes.POINTER(_Block)),
        ("decode", LinearStruct),
        ("head", LinearStruct),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("block_count", "width", "heads", "patches", "side")),
        ("epsilon", ctypes.c_float),
        ("reserved", ctypes.c_int32),
    ]


class _Batch(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_void_p) for name in ("x", "modulation", "last", "words", "out")),
        ("rows", ctypes.c_int64),
    ]


class CpuFlow:
    """Runs `weights`. Raises ValueError for a shape that the kernel does not have."""

    def __init__(self, weights: FlowWeights) -> None:
        loaded = library()
        assert loaded is not None, "callers ask library() first"
        size = weights.width // weights.heads
        if weights.width % 32 or size % 32 or size > LARGEST_HEAD or any(block.up.outputs % 32 for block in weights.blocks):
            raise ValueError(f"the kernel has no width {weights.width} with {weights.heads} heads")
        self._run = loaded.stride_flow_forward
        self._weights = weights
        self._blocks = (_Block * len(weights.blocks))(*map(_block, weights.blocks))
        self._flow = _Flow(
            self._blocks, weights.decode.struct(), weights.head.struct(), pointer(weights.cosines), pointer(weights.sines),
            len(weights.blocks), weights.width, weights.heads, weights.side**2, weights.side, weights.epsilon, 0,
        )  # fmt: skip

    def forward(self, x: Tensor, modulation: Tensor, last: Tensor, words: Tensor, threads: int) -> Tensor:
        """x float32 [R * patches + W, width], the patches of R rows and then the words of all, overwritten; modulation
        float32 [R, 6, width]; `last` float32 [R, 2, width]; `words` int64 [R + 1], where each row's words begin, counted
        from the first word -> float32 [R * patches, outputs of the head]. Rows do not influence one another."""
        rows = len(modulation)
        out = torch.empty(rows * self._weights.side**2, self._weights.head.outputs)
        job = _Batch(*map(pointer, (x, modulation, last, words, out)), rows)
        self._run(ctypes.byref(self._flow), ctypes.byref(job), threads)
        return out


def _block(block: FlowBlockWeights) -> _Block:
    linears = (block.qkv, block.out, block.up, block.down)
    tensors = (block.modulation, block.gains, block.filters, block.bias)
    return _Block(*(linear.struct() for linear in linears), *map(pointer, tensors))
