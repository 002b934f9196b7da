"""DDPM: ancestral sampling, order 1 in the limit of many steps; one evaluation a step, with fresh noise in each.

Source: arXiv 2006.11239, eq. 7 and algorithm 2, written for any alpha and sigma. With the small variance it is DDIM with
eta = 1; the large one suits data of unit variance. Not for few steps.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from service.procedures.tables import Grid, Row, SamplerTable


def ddpm(grid: Grid, variance: Literal["small", "large"] = "small") -> SamplerTable:
    """x' = the mean of q(x_s | x_t, x0) at the network's x0, plus noise, but none in the step to the data.

    variance: that of the posterior, or beta = sigma_t^2 - (alpha_t / alpha_s)^2 sigma_s^2, all that the forward process adds.
    """
    rows: list[Row] = []
    for i in range(grid.steps):
        alpha_t, sigma_t, alpha_s, sigma_s = grid.alphas[i], grid.sigmas[i], grid.alphas[i + 1], grid.sigmas[i + 1]
        ratio = alpha_t / alpha_s
        added = sigma_t**2 - (ratio * sigma_s) ** 2
        share = (sigma_s / sigma_t) ** 2  # not of squares, which vanish before their roots do
        of_data, of_state = alpha_s * (1.0 - ratio**2 * share), ratio * share
        deviation = math.sqrt(max(added, 0.0)) * (sigma_s / sigma_t if variance == "small" else 1.0)
        p, q = grid.data_from(i)
        rows.append(replace(grid.row(i), a=of_state + of_data * p, b=of_data * q, d=deviation if sigma_s > 0.0 else 0.0))
    return SamplerTable.from_rows(rows, start=grid.start)
