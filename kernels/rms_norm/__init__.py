"""Norms over the last dimension, alone or of what a branch is added to: one pass over memory.

Computed in float32 whatever the dtype of the stream is; weights and biases are float32. A row's result does not depend on the
other rows: the order of its sums follows from its size alone.
"""

from __future__ import annotations

from torch import Tensor

from kernels.fusing import fuses
from kernels.rms_norm import reference

__all__ = ["add_layer_norm", "add_rms_norm", "layer_norm", "rms_norm"]


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight (arXiv 1910.07467) of x [..., size]; weight [size], None: 1. Like x."""
    if fuses(x, weight):
        from kernels.rms_norm.triton_kernel import normalised

        return normalised(x, None, weight, None, eps, centred=False)[0]
    return reference.rms_norm(x, weight, eps)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """(x - mean) / sqrt(variance + eps) * weight + bias (arXiv 1607.06450) of x [..., size]; weight and bias [size]. Like x."""
    if fuses(x, weight, bias):
        from kernels.rms_norm.triton_kernel import normalised

        return normalised(x, None, weight, bias, eps, centred=True)[0]
    return reference.layer_norm(x, weight, bias, eps)


def add_rms_norm(x: Tensor, branch: Tensor, weight: Tensor | None, eps: float) -> tuple[Tensor, Tensor]:
    """`rms_norm` of x + branch, and that sum in the dtype of x, which is also what is normed. x and branch [..., size]."""
    _check(x, branch)
    if fuses(x, branch, weight):
        from kernels.rms_norm.triton_kernel import normalised

        return normalised(x, branch, weight, None, eps, centred=False)
    total = x + branch
    return reference.rms_norm(total, weight, eps), total


def add_layer_norm(
    x: Tensor, branch: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor]:
    """`layer_norm` of x + branch, and that sum in the dtype of x, which is also what is normed. x and branch [..., size]."""
    _check(x, branch)
    if fuses(x, branch, weight, bias):
        from kernels.rms_norm.triton_kernel import normalised

        return normalised(x, branch, weight, bias, eps, centred=True)
    total = x + branch
    return reference.layer_norm(total, weight, bias, eps), total


def _check(x: Tensor, branch: Tensor) -> None:
    if x.shape != branch.shape:
        raise ValueError(f"branch must have the shape of x, {list(x.shape)}, not {list(branch.shape)}")
