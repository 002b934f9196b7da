"""Philox4x32-10 and the numbers drawn with it as functions for Triton kernels: bit for bit those of `kernels.philox`.

Words are uint32. A row's seed is two words (`seed_words`), as is the number of a draw; which word of which counter a
number takes is said in `kernels.philox`. Arguments broadcast against each other.
"""

from __future__ import annotations

import triton
import triton.language as tl

_MULTIPLIER_0 = tl.constexpr(0xD2511F53)
_MULTIPLIER_1 = tl.constexpr(0xCD9E8D57)
_WEYL_0 = tl.constexpr(0x9E3779B9)
_WEYL_1 = tl.constexpr(0xBB67AE85)


@triton.jit
def seed_words(seed):
    """Low and high 32 bits of an int64."""
    bits = seed.to(tl.uint64, bitcast=True)
    return (bits & 0xFFFFFFFF).to(tl.uint32), (bits >> 32).to(tl.uint32)


@triton.jit
def philox4x32(seed_lo, seed_hi, c0, c1, c2, c3):
    """Four random words for the counter (c0, c1, c2, c3), least significant word first; all uint32."""
    # Keys are raised and words multiplied in 64 bits: one wide multiplication gives both halves of a product.
    key_0, key_1 = seed_lo.to(tl.uint64), seed_hi.to(tl.uint64)
    for _ in tl.static_range(10):
        product_0 = c0.to(tl.uint64) * _MULTIPLIER_0
        product_1 = c2.to(tl.uint64) * _MULTIPLIER_1
        c0 = (product_1 >> 32).to(tl.uint32) ^ c1 ^ key_0.to(tl.uint32)
        c2 = (product_0 >> 32).to(tl.uint32) ^ c3 ^ key_1.to(tl.uint32)
        c1 = (product_1 & 0xFFFFFFFF).to(tl.uint32)
        c3 = (product_0 & 0xFFFFFFFF).to(tl.uint32)
        key_0 = (key_0 + _WEYL_0) & 0xFFFFFFFF
        key_1 = (key_1 + _WEYL_1) & 0xFFFFFFFF
    return c0, c1, c2, c3


@triton.jit
def uniform(word):
    """Uniform float64 strictly between 0 and 1 of a word; exact, so that every device gives the same."""
    return (word.to(tl.float64) + 0.5) * 2.3283064365386963e-10  # 2**-32


@triton.jit
def gumbel(word):
    """Standard Gumbel number -log(-log u), float64, of a word.

    A GPU's float64 logarithm may differ from a CPU's in the last bit, and so may this number.
    """
    return -tl.log(-tl.log(uniform(word)))


@triton.jit
def normal_pair(first, second):
    """Two standard normal numbers, float32, of two words: Box-Muller in float64, rounded at the end.

    Numbers 2 i and 2 i + 1 of a stream come of its words 2 i and 2 i + 1. Where devices' float64 logarithm, cosine or sine
    differ in the last bit, the float32 is the same save where the value falls that close to the middle of two: about one
    number in 2^28.
    """
    radius = tl.sqrt(-2.0 * tl.log(uniform(first)))
    angle = 6.283185307179586 * uniform(second)  # 2 pi
    return (radius * tl.cos(angle)).to(tl.float32), (radius * tl.sin(angle)).to(tl.float32)
