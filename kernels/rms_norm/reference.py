"""Norms over the last dimension in plain torch: what every other implementation of them must agree with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """See `kernels.rms_norm.rms_norm`."""
    return F.rms_norm(x.float(), x.shape[-1:], weight, eps).to(x.dtype)


def layer_norm(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """See `kernels.rms_norm.layer_norm`."""
    return F.layer_norm(x.float(), x.shape[-1:], weight, bias, eps).to(x.dtype)
