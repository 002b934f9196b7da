"""Adaptive norms in plain torch: what every other implementation of them must agree with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float, centred: bool) -> Tensor:
    """See `kernels.modulation.modulated`."""
    wide, size = x.float(), x.shape[-1:]
    normed = F.layer_norm(wide, size, eps=eps) if centred else F.rms_norm(wide, size, eps=eps)
    return torch.addcmul(shift.float(), normed, 1 + scale.float()).to(x.dtype)


def gate_added(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """See `kernels.modulation.gate_added`."""
    return torch.addcmul(x.float(), gate.float(), branch.float()).to(x.dtype)
