"""Heun's method (explicit trapezoid) on the probability-flow ODE: order 2, 2 N - 1 evaluations for N steps.

Source: EDM, arXiv 2206.00364, algorithm 1 without churn. A step is two rows: an Euler row that keeps its slope in h1,
and a row at the new time that replaces that slope by the mean of both,

    x~ = x + h f1        x' = x~ - h/2 f1 + h/2 f2        h = s - t < 0

The step that ends at the data is its Euler row alone, as in EDM (where the slope at sigma = 0 is 0/0) and in diffusers'
FlowMatchHeunDiscreteScheduler; one first-order step leaves the order at 2. Not the midpoint rule of DPM-Solver-2,
which evaluates inside a step.
"""

from __future__ import annotations

from service.procedures.tables import Grid, Row, SamplerTable


def heun(grid: Grid) -> SamplerTable:
    """The table for a velocity on a flow grid, or for data or noise on a variance-exploding grid (alpha = 1).

    Raises ValueError for other grids, where the slope dx/dsigma is not a known multiple of one prediction.
    """
    rows: list[Row] = []
    for i in range(grid.steps):
        t, s = grid.times[i], grid.times[i + 1]
        h = grid.sigmas[i + 1] - grid.sigmas[i]
        p, q = _slope(grid, i)
        rows.append(Row(t=t, s=s, a=1.0 + h * p, b=h * q, p=p, q=q))
        if i + 1 < grid.steps:
            p, q = _slope(grid, i + 1)
            rows.append(Row(t=s, s=s, a=1.0 + h / 2 * p, b=h / 2 * q, c1=-h / 2))
    return SamplerTable.from_rows(rows)


def _slope(grid: Grid, node: int) -> tuple[float, float]:
    """(p, q) such that dx/dsigma = p x + q f at this node."""
    if grid.prediction == "velocity":
        return 0.0, 1.0
    if grid.prediction in ("data", "noise") and all(alpha == 1.0 for alpha in grid.alphas):
        return grid.noise_from(node)
    raise ValueError(f"heun needs a velocity prediction, or data or noise on a grid with alpha = 1, not {grid.prediction} here")
