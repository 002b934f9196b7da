"""Losses of the `shapes` model: the exact denoiser of the scenes teaches the velocity, paths of it teach the flow map.

Notation of MeanFlow (arXiv 2505.13447): x_t = (1-t) x0 + t eps, x_s = x_t - (t-s) u(x_t, t, s).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from service.training.exact_denoiser import ExactScenes, exact_denoised
from service.training.trajectories import Captions, Jumps

TIME_SPREAD = 0.9
EVEN_TIMES = 0.1
FULL_WEIGHT_FROM = 0.3
GUIDED_FROM = 0.7


@dataclass(frozen=True)
class SceneCaptions(Captions):
    """Caption ids with the scenes that they describe."""

    scenes: ExactScenes


@dataclass(frozen=True)
class TrainingBatch(SceneCaptions):
    """Captions with pictures [B, 3, H, W] in [-1, 1] that show them."""

    images: Tensor


def exact_velocity(x: Tensor, t: Tensor, scenes: ExactScenes) -> Tensor:
    """E[eps - x0 | x_t = x, caption] = (x - E[x0 | x, caption]) / t, like x."""
    return (x - exact_denoised(x, t, scenes)) / t.view(-1, 1, 1, 1)


def noise_images(images: Tensor, t: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(x_t, the velocity eps - x0 of the straight path), both in the shape of `images`, on the generator's device as they are."""
    noise = torch.randn(images.shape, generator=generator, device=images.device)
    time = t.view(-1, 1, 1, 1)
    return (1 - time) * images + time * noise, noise - images


def sample_velocity_times(count: int, bias: float, generator: torch.Generator) -> Tensor:
    """[count] times, on the generator's device: logit-normal (arXiv 2403.03206), but for the share `EVEN_TIMES` spread evenly
    over [0, 1].

    A positive `bias` leans to noise: which object stands where is decided there, above t = 0.8 for objects this small.
    """
    device = generator.device
    leaning = torch.sigmoid(bias + TIME_SPREAD * torch.randn(count, generator=generator, device=device))
    even = torch.rand(count, generator=generator, device=device)
    return torch.where(torch.rand(count, generator=generator, device=device) < EVEN_TIMES, even, leaning)


@dataclass(frozen=True)
class Targets:
    """What the network is to give: u(x, t, s; guidance, text) = `velocity`. x, velocity [B, C, H, W]; text [B, T]; else [B]."""

    x: Tensor
    t: Tensor
    s: Tensor
    guidance: Tensor
    text: Tensor
    velocity: Tensor

    @classmethod
    def of(cls, jumps: Jumps) -> Targets:
        """The average velocity of the teacher from t to s."""
        return cls(jumps.x, jumps.t, jumps.s, jumps.guidance, jumps.text, jumps.velocity)


def velocity_targets(batch: TrainingBatch, *, dropout: float, noise_bias: float, generator: torch.Generator) -> Targets:
    """u(x_t, t, t) for noisy pictures of the batch, with captions dropped at the rate `dropout`.

    It is the exact velocity E[eps - x0 | x_t, caption], or, without a caption, the sample eps - x0 (flow matching). The generator
    is of the device that the batch is on.
    """
    count = len(batch.images)
    t = sample_velocity_times(count, noise_bias, generator)
    x, sample = noise_images(batch.images, t, generator)
    dropped = torch.rand(count, 1, generator=generator, device=generator.device) < dropout
    text = torch.where(dropped, batch.empty, batch.text)
    target = torch.where(dropped[..., None, None], sample, exact_velocity(x, t, batch.scenes))
    return Targets(x, t, t, torch.ones_like(t), text, target)


class ScenePaths:
    """The velocity whose paths a flow map learns: exact with a caption, the `teacher` network's without one.

    Guidance mixes the two (classifier-free guidance, arXiv 2207.12598) from t = `GUIDED_FROM` on (an interval, arXiv
    2404.07724). Earlier in time what stands where is decided, and where the two still differ the state is wrong: away from the
    network's answer there leads away from any picture.
    """

    def __init__(self, teacher: nn.Module) -> None:
        self.teacher = teacher

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, guidance: Tensor, captions: Captions) -> Tensor:
        assert isinstance(captions, SceneCaptions)
        exact, guided = exact_velocity(x, t, captions.scenes), t >= GUIDED_FROM
        if not guided.any():
            return exact
        unconditional = self.teacher(x, t, t, torch.ones_like(t), captions.empty).float()
        return torch.lerp(unconditional, exact, torch.where(guided, guidance, 1.0).view(-1, 1, 1, 1))


def squared_errors(network: nn.Module, at: Targets) -> Tensor:
    """Mean squared error [B] of the network's velocities.

    Below t = `FULL_WEIGHT_FROM` the weight falls with t^2, so that it is the picture's error that counts: of the few rows there,
    a velocity that divides by t would let one outweigh all others of its batch.
    """
    errors = (network(at.x, at.t, at.s, at.guidance, at.text) - at.velocity).square().mean((1, 2, 3))
    return errors * (at.t / FULL_WEIGHT_FROM).clamp_max(1).square()
