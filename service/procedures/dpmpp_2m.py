"""DPM-Solver++(2M): an exponential integrator on the data prediction, multistep, order 2, one evaluation a step; and its SDE.

Source: arXiv 2211.01095, algorithm 2 and appendix D.5 ("heun") and SDE-DPM-Solver++(2M), eq. 18, with
lambda = log(alpha / sigma), h = lambda_s - lambda_t, g = (1 + eta) h:

    D = x0 + k (x0 - x0_prev)        k = h / (2 h_prev)
    x' = (sigma_s / sigma_t) e^(-eta h) x - alpha_s (e^-g - 1) D + sigma_s sqrt(1 - e^(-2 eta h)) eps

The order holds for small steps in lambda and eta = 0; uniform times, whose steps in lambda grow without bound at both ends,
cost a logarithm: the error falls as h^2 log(1/h). Not DPM-Solver-2 (which integrates the noise prediction) nor 2S (two
evaluations a step).
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Literal

from service.procedures.tables import Grid, Row, SamplerTable

_FEW = 15  # below so many steps the last one is of first order, wherever it ends, as in the paper's and diffusers' code


def dpmpp_2m(grid: Grid, eta: float = 0.0, solver: Literal["midpoint", "heun"] = "midpoint") -> SamplerTable:
    """The table for any prediction; h1 carries the data estimate of the step before.

    eta: 0 is the ODE, 1 the SDE. First order (DDIM) where the difference of data estimates has no finite width in lambda: in
    the first step, in the step after one that starts at pure noise (alpha = 0), and in the one that ends at the data.
    """
    rows: list[Row] = []
    h_prev = math.inf
    for i in range(grid.steps):
        alpha_s, sigma_s, sigma_t = grid.alphas[i + 1], grid.sigmas[i + 1], grid.sigmas[i]
        h = log_snr(alpha_s, sigma_s) - log_snr(grid.alphas[i], sigma_t)
        fall = (grid.alphas[i] * sigma_s) / (alpha_s * sigma_t)  # e^-h, which stays finite when h does not
        weight = alpha_s * (1.0 - fall ** (1.0 + eta))
        last_of_few = i + 1 == grid.steps < _FEW
        difference = 0.0  # times x0 - x0_prev
        if 0.0 < h < math.inf and math.isfinite(h_prev) and not last_of_few:  # 0: the last step, where it stands still
            g = (1.0 + eta) * h
            half = weight / 2.0 if solver == "midpoint" else alpha_s * (1.0 - (1.0 - math.exp(-g)) / g)
            difference = half * h / h_prev
        p, q = grid.data_from(i)
        rows.append(
            replace(
                grid.row(i),
                a=sigma_s / sigma_t * fall**eta + (weight + difference) * p,
                b=(weight + difference) * q,
                c1=-difference,
                d=sigma_s * math.sqrt(1.0 - fall ** (2.0 * eta)),
                p=p,
                q=q,
            )
        )
        h_prev = h
    return SamplerTable.from_rows(rows, start=grid.start)


def log_snr(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), which is half the log of the signal-to-noise ratio; infinite at both ends."""
    if alpha == 0.0:
        return -math.inf
    return math.log(alpha / sigma) if sigma > 0.0 else math.inf
