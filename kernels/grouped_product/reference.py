"""The product of each token with the matrix of its own expert in plain torch: what every other implementation must agree with."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from kernels.grouped_product.experts import ExpertMatrices, Routing


def grouped_product(x: Tensor, matrices: ExpertMatrices, routing: Routing, weights: Tensor | None) -> Tensor:
    """See `kernels.grouped_product.grouped_product`."""
    experts = routing.chosen.flatten()
    out = torch.zeros(len(experts), matrices.outputs, dtype=torch.float32, device=x.device)
    for expert, (weight, scale, bias) in enumerate(matrices.parts()):
        pairs = (experts == expert).nonzero().flatten()
        rows = pairs // routing.per_token if len(x) * routing.per_token == len(experts) else pairs
        product = F.linear(x[rows].float(), weight.float())
        product = product if scale is None else product * scale
        out[pairs] = product if bias is None else product + bias.float()
    out = out if weights is None else out * weights.float().reshape(-1, 1)
    return out.to(x.dtype)
