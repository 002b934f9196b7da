"""DDIM: order 1 at eta = 0 (deterministic), ancestral sampling of the DDPM posterior at eta = 1; one evaluation a step.

Source: arXiv 2010.02502, eq. 12 and 16, written for any alpha and sigma. In sigma / alpha this is the ancestral Euler step of
k-diffusion, sigma_down and sigma_up. Not a flow map: the network does not know s, so a large jump uses an average over the
data that could have led to x.
"""

from __future__ import annotations

import math
from dataclasses import replace

from service.procedures.tables import Grid, Row, SamplerTable


def ddim(grid: Grid, eta: float = 0.0, noise_scale: float = 1.0) -> SamplerTable:
    """x' = alpha_s x0 + sqrt(sigma_s^2 - eta^2 w^2) eps0 + noise_scale eta w eps, for any prediction.

    x0 and eps0 are the network's estimates and w = sigma_s / sigma_t sqrt(sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2)
    is the standard deviation of the posterior. Raises ValueError when eta is outside [0, 1].
    """
    if not 0.0 <= eta <= 1.0:
        raise ValueError(f"eta must be in [0, 1], not {eta}")
    rows: list[Row] = []
    for i in range(grid.steps):
        alpha_t, sigma_t, alpha_s, sigma_s = grid.alphas[i], grid.sigmas[i], grid.alphas[i + 1], grid.sigmas[i + 1]
        added = sigma_t**2 - (alpha_t / alpha_s * sigma_s) ** 2  # variance that the forward process adds from s to t
        posterior = sigma_s / sigma_t * math.sqrt(max(added, 0.0))
        kept = math.sqrt(max(sigma_s**2 - (eta * posterior) ** 2, 0.0))
        data_x, data_f = grid.data_from(i)
        noise_x, noise_f = grid.noise_from(i)
        rows.append(
            replace(
                grid.row(i),
                a=alpha_s * data_x + kept * noise_x,
                b=alpha_s * data_f + kept * noise_f,
                d=noise_scale * eta * posterior,
            )
        )
    return SamplerTable.from_rows(rows, start=grid.start)
