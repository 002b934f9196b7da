"""UniPC: a predictor of order 2 and a corrector that uses the same evaluation, which raises the order to 3.

Source: arXiv 2302.04867, algorithm 3 with B(h) = h ("bh1") or e^h - 1 ("bh2"), on the data prediction. One evaluation a step:
the network's output at the predicted x~_i corrects it to x_i and predicts x~_{i+1}. Only x~ is a state of the table. The
predictor that made x~_i is known, so the correction is a change of x~_i by differences of data estimates (h the step that led
to i, r the place of the step before it, D_i = x0 at x~_i, all in lambda = log(alpha / sigma)):

    x_i = x~_i + alpha_i B(-h) [ (1/2 - rho0) (D_{i-2} - D_{i-1}) / r  -  rho1 (D_i - D_{i-1}) ]

with 1 / r = 0 where that predictor was of order 1. Both fold into one row, over f, h1 = D_{i-1} and h2 = D_{i-2}. As of
DPM-Solver++(2M), the order holds for small steps in lambda. Not DPM-Solver++ itself, which has the same predictor (for bh2) and
no corrector.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

from service.procedures.dpmpp_2m import log_snr
from service.procedures.tables import Grid, Row, SamplerTable

Solver = Literal["bh1", "bh2"]


@dataclass(frozen=True, slots=True)
class _Step:
    """One step from node to node: alpha_s B, alpha_s (e^-h - 1), 1 / r of the step before (0: none, or infinitely long), and
    the corrector's weights. B is e^-h - 1 where h has no end."""

    scale: float
    b: float
    phi: float
    inverse_r: float
    rho0: float
    rho1: float


def unipc(grid: Grid, order: int = 2, solver: Solver = "bh2") -> SamplerTable:
    """The table for any prediction. The step to the data, or the last of all, and the first are of order 1."""
    rows: list[Row] = []
    before: _Step | None = None
    h_before = math.nan
    for i in range(grid.steps):
        h = log_snr(grid.alphas[i + 1], grid.sigmas[i + 1]) - log_snr(grid.alphas[i], grid.sigmas[i])
        second = order == 2 and 0 < i < grid.steps - 1
        step = _step(grid, i, h, h_before, second, solver)
        # x_i = x~_i + on_d D_i + on_h1 D_{i-1} + on_h2 D_{i-2}
        on_d = on_h1 = on_h2 = 0.0
        if before is not None:
            far = before.b * (0.5 - before.rho0) * before.inverse_r
            on_d, on_h1, on_h2 = -before.b * before.rho1, before.b * before.rho1 - far, far
        # x~_{i+1} = scale x_i - phi D_i - b/2 (D_{i-1} - D_i) / r
        slope = 0.5 * step.b * step.inverse_r
        on_d, on_h1, on_h2 = step.scale * on_d - step.phi + slope, step.scale * on_h1 - slope, step.scale * on_h2
        p, q = grid.data_from(i)
        rows.append(
            replace(grid.row(i), a=step.scale + on_d * p, b=on_d * q, c1=on_h1, c2=on_h2, p=p, q=q)
        )
        before, h_before = step, h
    return SamplerTable.from_rows(rows, start=grid.start)


def _step(grid: Grid, i: int, h: float, h_before: float, second: bool, solver: Solver) -> _Step:
    alpha_s = grid.alphas[i + 1]
    scale = grid.sigmas[i + 1] / grid.sigmas[i]
    phi = grid.alphas[i] * scale / alpha_s - 1.0  # e^-h - 1, which stays finite when h does not
    b = -h if solver == "bh1" and math.isfinite(h) else phi
    inverse_r = -h / h_before if second and math.isfinite(h_before) else 0.0
    rho0, rho1 = 0.0, 0.5
    if second and h > 0.0:
        first_moment = phi / -h - 1.0
        b1 = first_moment / b
        b2 = 2.0 * (first_moment / -h - 0.5) / b
        # rho0 + rho1 = b1 and r rho0 + rho1 = b2, with 1 / r in the place of r, which may be infinite.
        rho0 = (b1 - b2) * inverse_r / (inverse_r - 1.0)
        rho1 = b1 - rho0
    return _Step(scale, alpha_s * b, alpha_s * phi, inverse_r, rho0, rho1)
