"""Jumps of a flow map u(x, t, s), the average velocity over [s, t]: exact for an exact map, one evaluation a jump.

Source: MeanFlow, arXiv 2505.13447, eq. 12; shortcut models, arXiv 2410.12557. Not Euler: the update is the same, but
Euler's network is told t alone and its error vanishes only with the step.
"""

from __future__ import annotations

from service.procedures.tables import Grid, Row, SamplerTable


def flow_map(grid: Grid) -> SamplerTable:
    """x' = x - (t - s) u(x, t, s) on a flow grid; the network takes the target time.

    Raises ValueError unless the grid is one of a velocity.
    """
    if grid.prediction != "velocity":
        raise ValueError(f"flow_map needs an average velocity, not a {grid.prediction} prediction")
    rows = (Row(t=grid.times[i], s=grid.times[i + 1], b=grid.sigmas[i + 1] - grid.sigmas[i]) for i in range(grid.steps))
    return SamplerTable.from_rows(rows, takes_target=True)
