"""Multistep consistency sampling: jump to the data, add fresh noise, jump again; one evaluation a step.

Source: consistency models, arXiv 2303.01469, algorithm 1; sCM on TrigFlow, arXiv 2410.11081, and SANA-Sprint, 2503.09641. It
samples the model's distribution exactly in one step when the map is exact; more steps correct an inexact one. Not DDIM, which
keeps the noise that the network found in x, and not a chain of flow-map jumps, which is deterministic after the first noise.
"""

from __future__ import annotations

import math
from dataclasses import replace

from service.procedures.tables import Grid, Row, SamplerTable


def consistency(grid: Grid, takes_target: bool = True) -> SamplerTable:
    """x' = alpha_s x0 + sigma_s eps, with x0 the network's jump to the data, by the grid's prediction.

    takes_target: a flow map is asked for its jump to the data, u(x, t, 0), so that x0 = x - t u; a network of (x, t) that was
    trained for consistency is told nothing. Where the grid has a `boundary`, jumps end at that noise level, not at 0, and so
    the noise is that from there on.
    """
    rows: list[Row] = []
    for i in range(grid.steps):
        alpha_s, sigma_s = grid.alphas[i + 1], grid.sigmas[i + 1]
        p, q = grid.data_from(i)
        target = grid.times[-1] if takes_target else grid.times[i + 1]
        added = math.sqrt(max(sigma_s**2 - grid.boundary**2, 0.0))
        rows.append(replace(grid.row(i), s=target, a=alpha_s * p, b=alpha_s * q, d=added))
    return SamplerTable.from_rows(rows, takes_target=takes_target, start=grid.start)
