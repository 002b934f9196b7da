"""Heun's method (explicit trapezoid) on the probability-flow ODE: order 2, 2 N - 1 evaluations for N steps.

Source: EDM, arXiv 2206.00364, algorithm 1, and 2 with churn. A step is two rows: an Euler row that keeps its slope in h1,
and a row at the new time that replaces that slope by the mean of both. For a flow, with the velocity f,

    x~ = x + h f1        x' = x~ - h/2 f1 + h/2 f2        h = s - t < 0

and for other processes the same of x / alpha over sigma / alpha, whose slope is the noise. The step that ends at the data is
its Euler row alone, as in EDM (where the slope at sigma = 0 is 0/0) and in diffusers' schedulers; one first-order step leaves
the order at 2. Not the midpoint rule of DPM-Solver-2, which evaluates inside a step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from service.procedures.churn import churned, raise_noise
from service.procedures.tables import Grid, Node, Row, SamplerTable


def heun(grid: Grid, raised: Sequence[Node] = (), noise_scale: float = 1.0) -> SamplerTable:
    """The table for any prediction; `raised` as in `euler`.

    Raises ValueError where a process that is no flow begins at pure noise (alpha = 0): sigma / alpha has no end there.
    """
    rows: list[Row] = []
    straight = grid.straight
    for i in range(grid.steps):
        here = churned(grid, raised, i)
        if not straight and here.alphas[0] == 0.0:
            raise ValueError("heun integrates over sigma / alpha, which is infinite at pure noise; ddim and dpmpp_2m begin there")
        scale = 1.0 if straight else here.alphas[1] / here.alphas[0]
        h = _length(here)
        p, q = _slope(here, 0)
        step = [replace(here.row(0), a=scale + h * p, b=h * q, p=p, q=q)]
        if i + 1 < grid.steps:
            p, q = _slope(here, 1)
            step.append(replace(here.row(1, after=1), a=1.0 + h / 2 * p, b=h / 2 * q, c1=-h / 2))
        step[-1] = raise_noise(step[-1], raised, i + 1, noise_scale)
        rows += step
    return SamplerTable.from_rows(rows, start=churned(grid, raised, 0).start)


def _length(here: Grid) -> float:
    """What multiplies a slope: the step in sigma of a flow, that in sigma / alpha times the later alpha of other processes."""
    if here.straight:
        return here.sigmas[1] - here.sigmas[0]
    return here.sigmas[1] - here.alphas[1] / here.alphas[0] * here.sigmas[0]


def _slope(here: Grid, node: int) -> tuple[float, float]:
    """(p, q) such that the velocity of a flow, or else the noise, is p x + q f at this node."""
    if not here.straight:
        return here.noise_from(node)
    if here.prediction == "velocity":
        return 0.0, 1.0
    (noise_x, noise_f), (data_x, data_f) = here.noise_from(node), here.data_from(node)
    return noise_x - data_x, noise_f - data_f
