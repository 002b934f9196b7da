"""The sampler update in plain torch: what every other implementation of it must agree with."""

from __future__ import annotations

import torch
from torch import Tensor

from kernels.philox import normal
from kernels.sampler_update.terms import Guidance, Noise, Update


def sampler_step(
    x: Tensor,
    f: Tensor,
    h1: Tensor,
    h2: Tensor,
    coefficients: Tensor,
    eps: Tensor | None = None,
    noise: Noise | None = None,
    guidance: Guidance | None = None,
    estimates: Tensor | None = None,
) -> Update:
    """See `kernels.sampler_update.sampler_step`."""
    a, b, c1, c2, d, p, q = _columns(coefficients, x)
    x, f, h1, h2 = x.float(), f.float(), h1.float(), h2.float()
    if guidance is not None:
        f = guided(f, guidance)
    updated = a * x + b * f + c1 * h1 + c2 * h2
    if noise is not None:
        eps = drawn(x, coefficients[:, 4] != 0.0, noise)
    if eps is not None:
        updated = updated + d * eps.float()
    estimate = None
    if estimates is not None:
        of_state, of_output = _columns(estimates, x)
        estimate = of_state * x + of_output * f
    return Update(updated, p * x + q * f, h1, estimate)


def guided(f: Tensor, guidance: Guidance) -> Tensor:
    """Outputs f float32 [R, ...] with guidance."""
    paired = (guidance.partner >= 0).nonzero().flatten()
    without = guidance.unconditional[guidance.partner[paired]].float()
    scale = guidance.scale[paired].float().reshape(-1, *[1] * (f.ndim - 1))
    f = f.clone()
    f[paired] = without + scale * (f[paired] - without)
    return f


def drawn(x: Tensor, noisy: Tensor, noise: Noise) -> Tensor | None:
    """Noise like x for the rows that are `noisy`, bool [R], and 0 for others; None where there are none."""
    rows = noisy.nonzero().flatten()
    if not len(rows):
        return None
    eps = torch.zeros_like(x)
    eps[rows] = normal(noise.seeds[rows], noise.draws[rows], noise.purpose, x[0].numel()).view(-1, *x.shape[1:])
    return eps


def _columns(numbers: Tensor, x: Tensor) -> tuple[Tensor, ...]:
    """Each column of [R, n] so that it can be multiplied with x."""
    return numbers.float().reshape(len(numbers), -1, *[1] * (x.ndim - 1)).unbind(1)
