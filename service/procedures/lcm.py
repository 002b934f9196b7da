"""Latent consistency sampling: as `consistency`, of an output that is mixed with x so that it is x itself at t = 0.

Source: arXiv 2310.04378, sec. 4.1 and algorithm 3, with the boundary scalings of consistency models (2303.01469, eq. 5) at
sigma_data = 0.5 and timesteps times `timestep_scaling`. The guidance scale is an input of the network. For networks that were
distilled for it; not DDIM in few steps.
"""

from __future__ import annotations

from dataclasses import replace

from service.procedures.tables import Grid, Row, SamplerTable

_SIGMA_DATA = 0.5


def lcm(grid: Grid, timestep_scaling: float = 10.0) -> SamplerTable:
    """x' = alpha_s (c_skip x + c_out x0) + sigma_s eps, for any prediction; without noise in the last step."""
    rows: list[Row] = []
    for i in range(grid.steps):
        alpha_s, sigma_s = grid.alphas[i + 1], grid.sigmas[i + 1]
        scaled = timestep_scaling * grid.times[i]
        square = scaled**2 + _SIGMA_DATA**2
        skip, out = _SIGMA_DATA**2 / square, scaled / square**0.5
        p, q = grid.data_from(i)
        p, q = skip + out * p, out * q
        rows.append(replace(grid.row(i), a=alpha_s * p, b=alpha_s * q, d=sigma_s, x0_x=p, x0_f=q))
    return SamplerTable.from_rows(rows, start=grid.start)
