"""Kernels in C++ for processors with AVX-512 and bfloat16: packed weights, and all layers of a decoder in one call."""

from kernels.cpu.decoder import CpuDecoder, DecoderWeights, LayerWeights, Norm, PackedBatch
from kernels.cpu.library import library
from kernels.cpu.linear import PackedLinear, pack

__all__ = ["CpuDecoder", "DecoderWeights", "LayerWeights", "Norm", "PackedBatch", "PackedLinear", "library", "pack"]
