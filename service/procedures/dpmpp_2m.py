"""DPM-Solver++(2M): an exponential integrator on the data prediction, multistep, order 2, one evaluation a step.

Source: arXiv 2211.01095, algorithm 2 (midpoint variant), with lambda = log(alpha / sigma), h = lambda_s - lambda_t:

    D = x0 + k (x0 - x0_prev)        k = h / (2 h_prev)        x' = (sigma_s / sigma_t) x - alpha_s (e^-h - 1) D

The order holds for small steps in lambda; uniform times, whose steps in lambda grow without bound at both ends, cost a
logarithm: the error falls as h^2 log(1/h). Not DPM-Solver-2 (which integrates the noise prediction) nor 2S (two
evaluations a step).
"""

from __future__ import annotations

import math

from service.procedures.tables import Grid, Row, SamplerTable


def dpmpp_2m(grid: Grid) -> SamplerTable:
    """The table for any prediction; h1 carries the data estimate of the step before.

    k = 0 (first order, which is DDIM) where the difference of data estimates has no finite width in lambda: in the
    first step, in the step after one that starts at pure noise (alpha = 0), and in the one that ends at the data.
    """
    rows: list[Row] = []
    h_prev = math.inf
    for i in range(grid.steps):
        alpha_t, sigma_t, alpha_s, sigma_s = grid.alphas[i], grid.sigmas[i], grid.alphas[i + 1], grid.sigmas[i + 1]
        h = _log_snr(alpha_s, sigma_s) - _log_snr(alpha_t, sigma_t)
        k = h / (2.0 * h_prev) if math.isfinite(h) else 0.0
        scale = sigma_s / sigma_t
        weight = alpha_s - alpha_t * scale  # -alpha_s (e^-h - 1), which stays finite when h does not
        p, q = grid.data_from(i)
        rows.append(
            Row(
                t=grid.times[i],
                s=grid.times[i + 1],
                a=scale + weight * (1.0 + k) * p,
                b=weight * (1.0 + k) * q,
                c1=-weight * k,
                p=p,
                q=q,
            )
        )
        h_prev = h
    return SamplerTable.from_rows(rows)


def _log_snr(alpha: float, sigma: float) -> float:
    """log(alpha / sigma), which is half the log of the signal-to-noise ratio; infinite at both ends."""
    if alpha == 0.0:
        return -math.inf
    return math.log(alpha / sigma) if sigma > 0.0 else math.inf
