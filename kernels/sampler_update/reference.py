"""The sampler update in plain torch: what every other implementation of it must agree with."""

from __future__ import annotations

from torch import Tensor


def sampler_update(
    x: Tensor, f: Tensor, h1: Tensor, h2: Tensor, coefficients: Tensor, eps: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """See `kernels.sampler_update.sampler_update`."""
    a, b, c1, c2, d, p, q = coefficients.float().reshape(-1, 7, *[1] * (x.ndim - 1)).unbind(1)
    x, f, h1, h2 = x.float(), f.float(), h1.float(), h2.float()
    updated = a * x + b * f + c1 * h1 + c2 * h2
    if eps is not None:
        updated = updated + d * eps.float()
    return updated, p * x + q * f, h1
