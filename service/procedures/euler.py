"""Euler's method on the probability-flow ODE of rectified flow: order 1, one evaluation a step.

Source: flow matching, arXiv 2210.02747; rectified flow, arXiv 2209.03003. The same table as DDIM with eta = 0 on a flow
grid. Not a flow-map jump, which has the same update but a network that is told the target time.
"""

from __future__ import annotations

from service.procedures.tables import Grid, Row, SamplerTable


def euler(grid: Grid) -> SamplerTable:
    """x' = x + (s - t) f, for a velocity f. Raises ValueError for any other prediction."""
    if grid.prediction != "velocity":
        raise ValueError(f"euler needs a velocity prediction, not {grid.prediction}; ddim takes any")
    rows = (Row(t=grid.times[i], s=grid.times[i + 1], b=grid.sigmas[i + 1] - grid.sigmas[i]) for i in range(grid.steps))
    return SamplerTable.from_rows(rows)
