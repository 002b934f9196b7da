"""Losses of the `shapes` model: flow matching for the velocity, self-consistency for the guided flow map.

Notation of MeanFlow (arXiv 2505.13447): x_t = (1-t) x0 + t eps, x_s = x_t - (t-s) u(x_t, t, s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.models.flow_transformer import FlowTransformer

MAX_JUMPS = 8


@dataclass(frozen=True)
class TrainingBatch:
    """Pictures [B, 3, H, W] in [-1, 1], their caption ids [B, T], and the ids [B, T] of the empty caption."""

    images: Tensor
    text: Tensor
    empty_text: Tensor


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


def sample_velocity_times(count: int, generator: torch.Generator) -> Tensor:
    """[count] logit-normal times (arXiv 2403.03206) that lean to noise, where the layout is decided."""
    return torch.sigmoid(0.8 + 1.0 * torch.randn(count, generator=generator))


def velocity_loss(network: nn.Module, batch: TrainingBatch, dropout: float, generator: torch.Generator) -> Tensor:
    """Mean squared error [B] of u(x_t, t, t) against eps - x0, with captions dropped at the rate `dropout`."""
    count = len(batch.images)
    t = sample_velocity_times(count, generator)
    x, target = noise_images(batch.images, t, generator)
    dropped = torch.rand(count, 1, generator=generator) < dropout
    text = torch.where(dropped, batch.empty_text, batch.text)
    return (network(x, t, t, torch.ones_like(t), text) - target).square().mean((1, 2, 3))


def sample_flow_map_rows(
    count: int, longest: float, guidance_range: tuple[float, float], generator: torch.Generator
) -> FlowMapRows:
    """Jumps of length up to `longest`: two thirds on the grids of 1, 2, 4 and 8 equal jumps, the others anywhere."""
    jumps = 2.0 ** torch.randint(0, 4, (count,), generator=generator)
    jumps = torch.maximum(jumps, torch.full_like(jumps, 1.0 / longest)).clamp_max(MAX_JUMPS)
    start = jumps - (torch.rand(count, generator=generator) * jumps).floor()
    ends = torch.rand(2, count, generator=generator).sort(dim=0, descending=True).values
    free_t = ends[0]
    free_s = torch.maximum(ends[1], free_t - longest)
    on_grid = torch.rand(count, generator=generator) < 2 / 3
    t = torch.where(on_grid, start / jumps, free_t)
    s = torch.where(on_grid, (start - 1) / jumps, free_s)
    middle = torch.where(on_grid, 0.5, 0.3 + 0.4 * torch.rand(count, generator=generator))
    low, high = guidance_range
    guidance = low + (high - low) * torch.rand(count, generator=generator)
    return FlowMapRows(t, t + (s - t) * middle, s, guidance)


@torch.no_grad()
def guided_velocity(teacher: nn.Module, x: Tensor, t: Tensor, guidance: Tensor, batch: TrainingBatch) -> Tensor:
    """v_u + w (v_c - v_u) at guidance input 1 (classifier-free guidance, arXiv 2207.12598)."""
    ones = torch.ones_like(t)
    both = teacher(
        torch.cat([x, x]), torch.cat([t, t]), torch.cat([t, t]), torch.cat([ones, ones]),
        torch.cat([batch.text, batch.empty_text]),
    )  # fmt: skip
    conditional, unconditional = both.chunk(2)
    return torch.lerp(unconditional, conditional, guidance.view(-1, 1, 1, 1))


@torch.no_grad()
def flow_map_target(teacher: nn.Module, x: Tensor, rows: FlowMapRows, batch: TrainingBatch) -> Tensor:
    """The average velocity of two jumps of the teacher, t to m and m to s (shortcut models, arXiv 2410.12557)."""
    first = teacher(x, rows.t, rows.m, rows.guidance, batch.text).float()
    middle = x - (rows.t - rows.m).view(-1, 1, 1, 1) * first
    second = teacher(middle, rows.m, rows.s, rows.guidance, batch.text).float()
    weight = ((rows.t - rows.m) / (rows.t - rows.s).clamp_min(1e-6)).view(-1, 1, 1, 1)
    return weight * first + (1 - weight) * second


def flow_map_loss(
    network: FlowTransformer,
    teacher: nn.Module,
    batch: TrainingBatch,
    *,
    longest: float,
    anchored: float,
    generator: torch.Generator,
) -> Tensor:
    """Mean squared error [B] of u(x_t, t, s, w): `anchored` of the rows learn the guided velocity at short jumps.

    An anchored row jumps at most 1 / (2 MAX_JUMPS), where the guided velocity at its middle stands for the average; the
    other rows learn two jumps of the teacher in one. `longest` is the longest jump that is learned yet.
    """
    count = len(batch.images)
    rows = sample_flow_map_rows(count, longest, network.config.guidance_range, generator)
    short = round(count * anchored)
    span = torch.rand(short, generator=generator) / (2 * MAX_JUMPS)
    span = torch.where(torch.rand(short, generator=generator) < 0.5, span, torch.zeros(()))
    t = rows.t.clone()
    t[:short] = torch.maximum(sample_velocity_times(short, generator), span)
    s = rows.s.clone()
    s[:short] = t[:short] - span
    x, _ = noise_images(batch.images, t, generator)
    anchor, chain = slice(0, short), slice(short, count)
    target = torch.empty_like(x)
    target[anchor] = guided_midpoint_velocity(
        teacher, x[anchor], t[anchor], s[anchor], rows.guidance[anchor], _part(batch, anchor)
    )
    chained = FlowMapRows(t[chain], rows.m[chain], s[chain], rows.guidance[chain])
    target[chain] = flow_map_target(teacher, x[chain], chained, _part(batch, chain))
    return (network(x, t, s, rows.guidance, batch.text) - target).square().mean((1, 2, 3))


def guided_midpoint_velocity(
    teacher: nn.Module, x: Tensor, t: Tensor, s: Tensor, guidance: Tensor, batch: TrainingBatch
) -> Tensor:
    """The guided velocity at the start stands for the average over a span so short."""
    return guided_velocity(teacher, x, t, guidance, batch).float()


def _part(batch: TrainingBatch, rows: slice) -> TrainingBatch:
    return TrainingBatch(batch.images[rows], batch.text[rows], batch.empty_text[rows])
