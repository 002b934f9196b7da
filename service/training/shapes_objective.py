"""Losses of the `shapes` model: flow matching for the velocity, distillation of its guided paths for the flow map.

Notation of MeanFlow (arXiv 2505.13447): x_t = (1-t) x0 + t eps, x_s = x_t - (t-s) u(x_t, t, s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.training.trajectories import Jumps

TIME_SPREAD = 1.2
EVEN_TIMES = 0.15


@dataclass(frozen=True)
class TrainingBatch:
    """Pictures [B, 3, H, W] in [-1, 1], their caption ids [B, T], and the ids [B, T] of the empty caption."""

    images: Tensor
    text: Tensor
    empty_text: Tensor


def noise_images(images: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x_t, the velocity eps - x0 of the straight path), both in the shape of `images`."""
    noise = torch.randn(images.shape, generator=generator)
    time = t.view(-1, 1, 1, 1)
    return (1 - time) * images + time * noise, noise - images


def sample_velocity_times(count: int, bias: float, generator: torch.Generator) -> Tensor:
    """[count] times: logit-normal (arXiv 2403.03206), but for the share `EVEN_TIMES` spread evenly over [0, 1].

    A positive `bias` leans to noise: which object stands where is decided there, above t = 0.8 for objects this small.
    """
    leaning = torch.sigmoid(bias + TIME_SPREAD * torch.randn(count, generator=generator))
    even = torch.rand(count, generator=generator)
    return torch.where(torch.rand(count, generator=generator) < EVEN_TIMES, even, leaning)


def velocity_loss(
    network: nn.Module, batch: TrainingBatch, *, dropout: float, noise_bias: float, generator: torch.Generator
) -> Tensor:
    """Mean squared error [B] of u(x_t, t, t) against eps - x0, with captions dropped at the rate `dropout`."""
    count = len(batch.images)
    t = sample_velocity_times(count, noise_bias, generator)
    x, target = noise_images(batch.images, t, generator)
    dropped = torch.rand(count, 1, generator=generator) < dropout
    text = torch.where(dropped, batch.empty_text, batch.text)
    return (network(x, t, t, torch.ones_like(t), text) - target).square().mean((1, 2, 3))


def flow_map_loss(network: nn.Module, jumps: Jumps) -> Tensor:
    """Mean squared error [B] of u(x, t, s, w) against the average velocity of a teacher's path from t to s."""
    return (network(jumps.x, jumps.t, jumps.s, jumps.guidance, jumps.text) - jumps.velocity).square().mean((1, 2, 3))
