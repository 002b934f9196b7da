"""Multistep consistency sampling: jump to the data, add fresh noise, jump again; one evaluation a step.

Source: consistency models, arXiv 2303.01469, algorithm 1; sCM, arXiv 2410.11081. It samples the model's distribution
exactly in one step when the map is exact; more steps correct an inexact one. Not DDIM, which keeps the noise that the
network found in x, and not a chain of flow-map jumps, which is deterministic after the first noise.
"""

from __future__ import annotations

from service.procedures.tables import Grid, Row, SamplerTable


def consistency(grid: Grid, takes_target: bool = True) -> SamplerTable:
    """x' = alpha_s x0 + sigma_s eps, with x0 the network's jump to the data.

    takes_target: the network is a flow map, asked for u(x, t, 0), so x0 = x - t u; else a network of (x, t) trained for
    consistency, with x0 by the grid's prediction. Raises ValueError for a flow map on a grid that is not of a velocity.
    """
    if takes_target and grid.prediction != "velocity":
        raise ValueError(f"a flow map predicts an average velocity, not {grid.prediction}")
    rows: list[Row] = []
    for i in range(grid.steps):
        alpha_s, sigma_s = grid.alphas[i + 1], grid.sigmas[i + 1]
        p, q = grid.data_from(i)
        target = grid.times[-1] if takes_target else grid.times[i + 1]
        rows.append(Row(t=grid.times[i], s=target, a=alpha_s * p, b=alpha_s * q, d=sigma_s))
    return SamplerTable.from_rows(rows, takes_target=takes_target)
