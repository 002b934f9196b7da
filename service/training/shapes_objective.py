"""Losses of the `shapes` model: flow matching for the velocity, self-consistency for the guided flow map.

Notation of MeanFlow (arXiv 2505.13447): x_t = (1-t) x0 + t eps, x_s = x_t - (t-s) u(x_t, t, s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.models.flow_transformer import FlowTransformer

MAX_JUMPS = 8
SHORTEST_JUMP = 1 / 32


@dataclass(frozen=True)
class TrainingBatch:
    """Pictures [B, 3, H, W] in [-1, 1], their caption ids [B, T], and the ids [B, T] of the empty caption."""

    images: Tensor
    text: Tensor
    empty_text: Tensor

    def part(self, rows: slice) -> TrainingBatch:
        return TrainingBatch(self.images[rows], self.text[rows], self.empty_text[rows])


@dataclass(frozen=True)
class FlowMapRows:
    """Which jumps a batch learns: from t to s over m, s <= m <= t, under a guidance scale; all [B]."""

    t: Tensor
    m: Tensor
    s: Tensor
    guidance: Tensor


def noise_images(images: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x_t, the velocity eps - x0 of the straight path), both in the shape of `images`."""
    noise = torch.randn(images.shape, generator=generator)
    time = t.view(-1, 1, 1, 1)
    return (1 - time) * images + time * noise, noise - images


def sample_velocity_times(count: int, bias: float, generator: torch.Generator) -> Tensor:
    """[count] logit-normal times (arXiv 2403.03206); a positive `bias` leans to noise, where the layout is decided."""
    return torch.sigmoid(bias + torch.randn(count, generator=generator))


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


def sample_flow_map_rows(
    count: int, longest: float, guidance_range: tuple[float, float], generator: torch.Generator
) -> FlowMapRows:
    """Jumps of length up to `longest`: two thirds on the grids of 1, 2, 4 and 8 equal jumps, the others anywhere.

    Guidance scales are spread evenly over the logarithm of their range.
    """
    jumps = 2.0 ** torch.randint(0, 4, (count,), generator=generator)
    jumps = jumps.clamp(min(1 / longest, MAX_JUMPS), MAX_JUMPS)
    start = jumps - (torch.rand(count, generator=generator) * jumps).floor()
    ends = torch.rand(2, count, generator=generator).sort(dim=0, descending=True).values
    on_grid = torch.rand(count, generator=generator) < 2 / 3
    t = torch.where(on_grid, start / jumps, ends[0])
    s = torch.where(on_grid, (start - 1) / jumps, torch.maximum(ends[1], ends[0] - longest))
    share = torch.where(on_grid, 0.5, 0.3 + 0.4 * torch.rand(count, generator=generator))
    low, high = guidance_range
    guidance = low * (high / low) ** torch.rand(count, generator=generator)
    return FlowMapRows(t, torch.lerp(t, s, share), s, guidance)


@torch.no_grad()
def guided_velocity(teacher: nn.Module, x: Tensor, t: Tensor, guidance: Tensor, batch: TrainingBatch) -> Tensor:
    """v_u + w (v_c - v_u) of the teacher at guidance input 1 (classifier-free guidance, arXiv 2207.12598)."""
    times, ones = t.repeat(2), torch.ones(2 * len(t))
    both = teacher(x.repeat(2, 1, 1, 1), times, times, ones, torch.cat([batch.text, batch.empty_text])).float()
    conditional, unconditional = both.chunk(2)
    return torch.lerp(unconditional, conditional, guidance.view(-1, 1, 1, 1))


@torch.no_grad()
def two_jump_velocity(teacher: nn.Module, x: Tensor, rows: FlowMapRows, batch: TrainingBatch) -> Tensor:
    """The average velocity over [s, t] of two jumps of the teacher, t to m and m to s (shortcuts, arXiv 2410.12557)."""
    first = teacher(x, rows.t, rows.m, rows.guidance, batch.text).float()
    middle = x - (rows.t - rows.m).view(-1, 1, 1, 1) * first
    second = teacher(middle, rows.m, rows.s, rows.guidance, batch.text).float()
    share = ((rows.t - rows.m) / (rows.t - rows.s).clamp_min(1e-6)).view(-1, 1, 1, 1)
    return torch.lerp(second, first, share)


def flow_map_loss(
    network: FlowTransformer,
    teacher: nn.Module,
    batch: TrainingBatch,
    *,
    longest: float,
    anchored: float,
    noise_bias: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error [B] of u(x_t, t, s, w) for jumps of length up to `longest`.

    The share `anchored` of the rows learn the guided velocity: half of them at s = t, half over a jump of at most
    `SHORTEST_JUMP`, where it stands for the average. The other rows learn two jumps of the teacher in one. Neither
    target has a gradient.
    """
    count = len(batch.images)
    short = round(count * anchored)
    rows = sample_flow_map_rows(count, longest, network.config.guidance_range, generator)
    span = SHORTEST_JUMP * (2 * torch.rand(short, generator=generator) - 1).clamp_min(0)
    t = torch.cat([torch.maximum(sample_velocity_times(short, noise_bias, generator), span), rows.t[short:]])
    s = torch.cat([t[:short] - span, rows.s[short:]])
    x, _ = noise_images(batch.images, t, generator)
    anchors, chains = slice(0, short), slice(short, count)
    chained = FlowMapRows(t[chains], rows.m[chains], s[chains], rows.guidance[chains])
    target = torch.cat(
        [
            guided_velocity(teacher, x[anchors], t[anchors], rows.guidance[anchors], batch.part(anchors)),
            two_jump_velocity(teacher, x[chains], chained, batch.part(chains)),
        ]
    )
    return (network(x, t, s, rows.guidance, batch.text) - target).square().mean((1, 2, 3))
