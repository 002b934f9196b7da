"""Functions of Triton kernels that are right in the interpreter as well as compiled."""

from __future__ import annotations

import triton
import triton.language as tl

INTERPRETED = tl.constexpr(triton.knobs.runtime.interpret)


@triton.jit
def product(a, b, sums):
    """sums float32 [M, N] plus a [M, K] times b [K, N], both of one floating-point type; float32 is not rounded to tf32."""
    # The interpreter multiplies the bits of bfloat16 as if they were whole numbers.
    if INTERPRETED:
        return tl.dot(a.to(tl.float32), b.to(tl.float32), sums, input_precision="ieee")
    else:
        return tl.dot(a, b, sums, input_precision="ieee")


@triton.jit
def widened(x, like):
    """Numbers of 8 bits as floating-point numbers to multiply with `like`; exact."""
    # The interpreter takes whole numbers for the bits of bfloat16.
    if INTERPRETED:
        return x.to(tl.float32)
    else:
        return x.to(like.dtype)


@triton.jit
def tanh(x):
    """To float32's absolute precision; the libraries' tanh is unknown to the interpreter."""
    return 1.0 - 2.0 / (tl.exp(2.0 * x) + 1.0)


@triton.jit
def activated(x, ACTIVATION: tl.constexpr):
    """x float32 through `silu`, `gelu`, `gelu_tanh` or `relu`."""
    tl.static_assert(ACTIVATION == "silu" or ACTIVATION == "gelu" or ACTIVATION == "gelu_tanh" or ACTIVATION == "relu")
    if ACTIVATION == "silu":
        return x * tl.sigmoid(x)
    elif ACTIVATION == "gelu":
        return 0.5 * x * (1.0 + tl.erf(x * 0.7071067811865476))
    elif ACTIVATION == "gelu_tanh":
        return 0.5 * x * (1.0 + tanh(0.7978845608028654 * (x + 0.044715 * x * x * x)))
    else:
        return tl.maximum(x, 0.0)
