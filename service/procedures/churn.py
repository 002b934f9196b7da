"""Churn: noise that is added before a step, which then removes more than it was asked to (EDM, arXiv 2206.00364, algorithm 2).

The network is evaluated at the raised noise level, as in EDM: the noise that precedes a step is part of the row before it, and
that of the first step part of the first state. (diffusers adds it after the evaluation, and so asks about another level.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from service.procedures.noise_process import NoiseProcess
from service.procedures.tables import Grid, Node, Row


def raised_nodes(noise: NoiseProcess, grid: Grid, churn: float, low: float, high: float) -> list[Node]:
    """The node at which each step begins: sigma / alpha times 1 + min(churn / steps, sqrt(2) - 1) where it is in [low, high].

    Empty where there is no churn. Pure noise (alpha = 0) cannot be raised, and stays.
    """
    if churn == 0.0:
        return []
    gamma = min(churn / grid.steps, math.sqrt(2.0) - 1.0)
    nodes = [grid.node(i) for i in range(grid.steps)]
    return [
        noise.times.at(node.sigma / node.alpha * (1.0 + gamma))
        if node.alpha > 0.0 and low <= node.sigma / node.alpha <= high
        else node
        for node in nodes
    ]


def churned(grid: Grid, raised: Sequence[Node], step: int) -> Grid:
    """The grid of one step alone, begun at its raised node."""
    here, there, start = grid.node(step), grid.node(step + 1), grid.start
    if raised:
        if step == 0:
            start = _raised_start(start, here, raised[0])
        here = raised[step]
    alphas, sigmas, times = zip(here, there, strict=True)
    return replace(grid, alphas=alphas, sigmas=sigmas, times=times, start=start)


def raise_noise(row: Row, raised: Sequence[Node], step: int, scale: float = 1.0) -> Row:
    """The row, followed by the noise that step number `step` begins with."""
    if not raised or step >= len(raised):
        return row
    return replace(noised(row, raised[step], scale), s=raised[step].time)


def noised(row: Row, node: Node, scale: float = 1.0) -> Row:
    """The row, followed by noise up to a node: x <- k x + scale sqrt(sigma'^2 - (k sigma)^2) eps, k = alpha' / alpha."""
    shrink = node.alpha / row.alpha
    added = math.sqrt(max(node.sigma**2 - (shrink * row.sigma) ** 2, 0.0))
    return replace(
        row, a=shrink * row.a, b=shrink * row.b, c1=shrink * row.c1, c2=shrink * row.c2, d=scale * added,
        alpha=node.alpha, sigma=node.sigma,
    )  # fmt: skip


def _raised_start(start: tuple[float, float], node: Node, after: Node) -> tuple[float, float]:
    alpha, sigma = start
    if node.alpha == 0.0:
        return start
    shrink = after.alpha / node.alpha
    added = after.sigma**2 - (shrink * node.sigma) ** 2
    return shrink * alpha, math.sqrt(max((shrink * sigma) ** 2 + added, 0.0))
