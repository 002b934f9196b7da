"""Euler's method on the probability-flow ODE: order 1, one evaluation a step; with churn, algorithm 2 of EDM without its
second-order correction.

Source: flow matching, arXiv 2210.02747; rectified flow, arXiv 2209.03003; churn, EDM, arXiv 2206.00364. The same table as DDIM
with eta = 0. Not a flow-map jump, which has the same update but a network that is told the target time; nor ancestral, which
replaces noise instead of adding some.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.procedures.churn import churned, raise_noise
from service.procedures.tables import Grid, Node, SamplerTable


def euler(grid: Grid, raised: Sequence[Node] = (), noise_scale: float = 1.0) -> SamplerTable:
    """x' = alpha_s x0 + sigma_s eps0, with the network's estimates of data and noise: x + (s - t) f for a velocity.

    raised: see `churn.raised_nodes`; the noise of the first one is in `start`.
    """
    rows = []
    for i in range(grid.steps):
        here = churned(grid, raised, i)
        row = here.row(0)
        if grid.prediction == "velocity" and here.straight:
            row = replace(row, b=here.sigmas[1] - here.sigmas[0])
        else:
            (data_x, data_f), (noise_x, noise_f) = here.data_from(0), here.noise_from(0)
            alpha, sigma = here.alphas[1], here.sigmas[1]
            row = replace(row, a=alpha * data_x + sigma * noise_x, b=alpha * data_f + sigma * noise_f)
        rows.append(raise_noise(row, raised, i + 1, noise_scale))
    return SamplerTable.from_rows(rows, start=churned(grid, raised, 0).start)
