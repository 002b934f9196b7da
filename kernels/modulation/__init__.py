"""Adaptive norms of diffusion transformers (adaLN-zero, arXiv 2212.09748): every row of a batch has vectors of its own that
scale and shift its normed tokens and gate what is added to them.

x and branch: [R, N, size]. shift, scale, gate: [R, 1, size], of any row stride. Computed in float32, rounded to the dtype of
x once. A token's result does not depend on the other tokens.
"""

from __future__ import annotations

from torch import Tensor

from kernels.fusing import fuses
from kernels.modulation import reference

__all__ = ["gate_added", "gate_added_modulated", "modulated"]


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, centred: bool = True) -> Tensor:
    """norm(x) * (1 + scale) + shift; the norm is a layer norm where `centred`, else an RMS norm, without weights. Like x."""
    _check(x, shift=shift, scale=scale)
    if fuses(x, shift, scale):
        from kernels.modulation.triton_kernel import modulate

        return modulate(x, None, (shift, scale), eps, centred)[1]
    return reference.modulated(x, shift, scale, eps, centred)


def gate_added(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch. Like x."""
    _check(x, gate=gate)
    if fuses(x, gate, branch):
        from kernels.modulation.triton_kernel import modulate

        return modulate(x, (gate, branch), None, 0.0, False)[0]
    return reference.gate_added(x, gate, branch)


def gate_added_modulated(
    x: Tensor, gate: Tensor, branch: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """`gate_added`, and `modulated` of it, both like x."""
    _check(x, gate=gate, shift=shift, scale=scale)
    if fuses(x, gate, branch, shift, scale):
        from kernels.modulation.triton_kernel import modulate

        return modulate(x, (gate, branch), (shift, scale), eps, centred)
    total = reference.gate_added(x, gate, branch)
    return total, reference.modulated(total, shift, scale, eps, centred)


def _check(x: Tensor, **vectors: Tensor) -> None:
    """Raises ValueError for vectors that are not one a row."""
    expected = (x.shape[0], 1, x.shape[-1])
    for name, vector in vectors.items():
        if vector.shape != expected:
            raise ValueError(f"{name} must be {list(expected)} for x {list(x.shape)}, not {list(vector.shape)}")
