"""Norms under a row's own scale and shift, and gates of what is added (adaLN-zero, arXiv 2212.09748): one kernel on a GPU.

x and branch [R, N, width]; shift, scale and gate [R, 1, width]. Elsewhere, and where gradients are wanted, torch rounds every
intermediate result to the network's dtype.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels import modulation
from kernels.fusing import fuses


def modulated(x: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, centred: bool = True) -> Tensor:
    """norm(x) * (1 + scale) + shift, the norm without weights: a layer norm where `centred`, else an RMS norm."""
    if fuses(x, shift, scale):
        return modulation.modulated(x, shift, scale, eps, centred)
    normed = F.layer_norm(x, x.shape[-1:], eps=eps) if centred else F.rms_norm(x, x.shape[-1:], eps=eps)
    return torch.addcmul(shift, normed, 1 + scale)


def gate_added(x: Tensor, gate: Tensor, branch: Tensor) -> Tensor:
    """x + gate * branch."""
    if fuses(x, gate, branch):
        return modulation.gate_added(x, gate, branch)
    return torch.addcmul(x, gate, branch)


def gate_added_modulated(
    x: Tensor, gate: Tensor, branch: Tensor, shift: Tensor, scale: Tensor, eps: float = 1e-6, centred: bool = True
) -> tuple[Tensor, Tensor]:
    """`gate_added`, and `modulated` of it."""
    if fuses(x, gate, branch, shift, scale):
        return modulation.gate_added_modulated(x, gate, branch, shift, scale, eps, centred)
    x = gate_added(x, gate, branch)
    return x, modulated(x, shift, scale, eps, centred)
