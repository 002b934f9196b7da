"""Norms over the last dimension, computed in float32 whatever the network's dtype; their weights stay float32 when served."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.decoder_config import DecoderConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467). Families that multiply by 1 + weight have the 1 added when they are loaded.
    Not `weighted`, it has no parameters."""

    def __init__(self, size: int, eps: float, weighted: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if weighted else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps).to(x.dtype)


class LayerNorm(nn.Module):
    """(x - mean) / deviation * weight + bias (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.float(), self.weight.shape, self.weight, self.bias, self.eps).to(x.dtype)


def norm_of(config: DecoderConfig) -> nn.Module:
    """Of the stream."""
    size = config.hidden_size
    return RMSNorm(size, config.norm_eps) if config.norm == "rms" else LayerNorm(size, config.norm_eps)
