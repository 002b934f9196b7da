"""What stands between the matrices of a gated feed-forward layer (arXiv 2002.05202), in one pass over memory."""

from __future__ import annotations

from torch import Tensor

from kernels.fusing import fuses
from kernels.swiglu import reference
from kernels.swiglu.reference import ACTIVATIONS

__all__ = ["ACTIVATIONS", "gated"]


def gated(gate_up: Tensor, activation: str = "silu") -> Tensor:
    """activation(gate) * up of gate_up [..., 2 size], gates before ups -> [..., size] of its dtype, computed in float32.

    Raises ValueError for an activation that is none of `ACTIVATIONS`, and for an odd number of columns.
    """
    if activation not in ACTIVATIONS:
        raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, not {activation!r}")
    if gate_up.shape[-1] % 2:
        raise ValueError(f"gate_up must hold as many gates as ups, not {gate_up.shape[-1]} columns")
    if fuses(gate_up):
        from kernels.swiglu.triton_kernel import gated as fused

        return fused(gate_up, activation)
    return reference.gated(gate_up, activation)
