"""Products with weights of 8 bits in plain torch: what every other implementation of them must agree with."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def weight_only(x: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """See `kernels.weight_only.weight_only`."""
    product = F.linear(x.float(), weight.float()) * scale
    return (product if bias is None else product + bias.float()).to(x.dtype)
