"""Two by two latent pixels as one token, as FLUX and its relatives see them."""

from __future__ import annotations

import torch
from torch import Tensor


def patchify(x: Tensor) -> Tensor:
    """[R, C, 2H, 2W] -> [R, 4C, H, W]; the channel is the slowest of the new ones, then the row, then the column."""
    rows, channels, height, width = x.shape
    parts = x.reshape(rows, channels, height // 2, 2, width // 2, 2).permute(0, 1, 3, 5, 2, 4)
    return parts.reshape(rows, 4 * channels, height // 2, width // 2)


def unpatchify(x: Tensor) -> Tensor:
    """[R, 4C, H, W] -> [R, C, 2H, 2W]"""
    rows, channels, height, width = x.shape
    parts = x.reshape(rows, channels // 4, 2, 2, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(rows, channels // 4, 2 * height, 2 * width)


def sequence(x: Tensor) -> Tensor:
    """[R, C, H, W] -> [R, H·W, C]"""
    return x.flatten(2).transpose(1, 2)


def grid(x: Tensor, height: int, width: int) -> Tensor:
    """[R, H·W, C] -> [R, C, H, W]"""
    return x.transpose(1, 2).reshape(x.shape[0], x.shape[2], height, width)


def positions(height: int, width: int, axes: tuple[int, int], dimensions: int, device: torch.device) -> Tensor:
    """Position ids float32 [H·W, dimensions] of a grid: its row and column on `axes`, 0 on all others."""
    ids = torch.zeros(height, width, dimensions, device=device)
    ids[..., axes[0]] += torch.arange(height, device=device)[:, None]
    ids[..., axes[1]] += torch.arange(width, device=device)[None, :]
    return ids.flatten(0, 1)
