"""Jumps of a flow map f(x, t, s), which is told where it is jumping to: exact for an exact map, one evaluation a jump.

Source: MeanFlow, arXiv 2505.13447, eq. 12; shortcut models, 2410.12557 (the same jump; the network is told t - s); CTM,
2310.02279, eq. 9 and algorithm 3; IMM, 2503.07565, eq. 5. All are the DDIM map of the network's estimate of the data,

    x' = (sigma_s / sigma_t) x + (alpha_s - alpha_t sigma_s / sigma_t) x0

which is x - (t - s) u for the average velocity u of a flow, and (s/t) x + (1 - s/t) g in CTM's coordinates. Not Euler or DDIM:
the update is the same, but their network is told t alone, and their error vanishes only with the step.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from service.procedures.noise_process import NoiseProcess
from service.procedures.tables import Grid, Node, Row, SamplerTable


def flow_map(grid: Grid, landings: Sequence[Node] = ()) -> SamplerTable:
    """One jump a step; the network takes the target time.

    landings: for every step, where its jump ends (see `landing_nodes`); noise is then added up to the step's own end. None
    is needed where jumps end there.
    """
    return SamplerTable.from_rows(jumps(grid, landings), takes_target=True, start=grid.start)


def jumps(grid: Grid, landings: Sequence[Node] = ()) -> list[Row]:
    """The rows of `flow_map`."""
    straight = grid.prediction == "velocity" and grid.straight
    return [_jump(grid, i, landings[i] if landings else None, straight) for i in range(grid.steps)]


def landing_nodes(noise: NoiseProcess, grid: Grid, gamma: float) -> list[Node]:
    """Where jumps end with CTM's gamma-sampling: at sigma / alpha times sqrt(1 - gamma^2). gamma 0 is deterministic, with 1
    every jump ends at the data, as in `consistency`. Empty for 0."""
    if gamma == 0.0:
        return []
    ends = zip(grid.alphas[1:], grid.sigmas[1:], strict=True)
    ratios = [math.sqrt(max(1.0 - gamma * gamma, 0.0)) * sigma / alpha for alpha, sigma in ends]
    return [noise.times.at(ratio) if ratio > 0.0 else Node(1.0, 0.0, grid.times[-1]) for ratio in ratios]


def _jump(grid: Grid, i: int, landing: Node | None, straight: bool) -> Row:
    row = grid.row(i)
    if landing is None and straight:
        return replace(row, b=grid.sigmas[i + 1] - grid.sigmas[i])
    end = landing or grid.node(i + 1)
    ratio = end.sigma / grid.sigmas[i]
    weight = end.alpha - grid.alphas[i] * ratio
    shrink = row.alpha / end.alpha
    added = math.sqrt(max(row.sigma**2 - (shrink * end.sigma) ** 2, 0.0))
    p, q = grid.data_from(i)
    return replace(row, s=end.time, a=shrink * (ratio + weight * p), b=shrink * weight * q, d=added)
