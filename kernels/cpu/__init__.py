"""Kernels in C++ for processors with AVX-512 and bfloat16: packed weights, and all layers of a network in one call."""

from kernels.cpu.decoder import CpuDecoder, DecoderWeights, LayerWeights, Norm, PackedBatch, has_heads_of
from kernels.cpu.flow import CpuFlow, FlowBlockWeights, FlowWeights
from kernels.cpu.library import library
from kernels.cpu.linear import PackedLinear, pack
from kernels.cpu.sampling import draw_tokens, spread

__all__ = [
    "CpuDecoder",
    "CpuFlow",
    "DecoderWeights",
    "FlowBlockWeights",
    "FlowWeights",
    "LayerWeights",
    "Norm",
    "PackedBatch",
    "PackedLinear",
    "draw_tokens",
    "has_heads_of",
    "library",
    "pack",
    "spread",
]
