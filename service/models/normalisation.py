"""Norms over the last dimension, computed in float32 whatever the network's dtype; their weights stay float32 when served."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from kernels.rms_norm import add_layer_norm, add_rms_norm, layer_norm, rms_norm
from service.models.decoder_config import DecoderConfig


class RMSNorm(nn.Module):
    """x / rms(x) * weight (arXiv 1910.07467). Families that multiply by 1 + weight have the 1 added when they are loaded.
    Not `weighted`, it has no parameters."""

    def __init__(self, size: int, eps: float, weighted: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size)) if weighted else None
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return rms_norm(x, self.weight, self.eps)

    def added(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + branch, and that sum."""
        return add_rms_norm(x, branch, self.weight, self.eps)


class LayerNorm(nn.Module):
    """(x - mean) / deviation * weight + bias (arXiv 1607.06450)."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return layer_norm(x, self.weight, self.bias, self.eps)

    def added(self, x: Tensor, branch: Tensor) -> tuple[Tensor, Tensor]:
        """The norm of x + branch, and that sum."""
        return add_layer_norm(x, branch, self.weight, self.bias, self.eps)


def norm_of(config: DecoderConfig) -> nn.Module:
    """Of the stream."""
    size = config.hidden_size
    return RMSNorm(size, config.norm_eps) if config.norm == "rms" else LayerNorm(size, config.norm_eps)


def add_and_norm(norm: nn.Module | None, x: Tensor, branch: Tensor | None) -> tuple[Tensor, Tensor]:
    """x with what is still to be added to it, behind `norm` (None: as it is), and before it."""
    if branch is not None and isinstance(norm, RMSNorm | LayerNorm):
        return norm.added(x, branch)
    total = x if branch is None else x + branch
    return total if norm is None else norm(total), total
