"""Restart: a flow map jumps to the data, noise is added up to a level, and it jumps again from there.

Source: restart sampling, arXiv 2306.14878, algorithm 1, with jumps in the place of an ODE solver's steps: fresh noise contracts
the errors of the jumps before, at the price of those that follow. Not `consistency`, whose every jump goes to the data.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.procedures.churn import noised
from service.procedures.flow_map import jumps
from service.procedures.tables import Grid, Row, SamplerTable


def restart(passes: Sequence[Grid]) -> SamplerTable:
    """The jumps of every grid in turn; noise leads from the end of each to the beginning of the next."""
    rows: list[Row] = []
    for grid, following in zip(passes, [*passes[1:], None], strict=True):
        own = jumps(grid)
        if following is not None:
            own[-1] = noised(own[-1], following.node(0))
        rows += own
    return SamplerTable.from_rows(rows, takes_target=True, start=passes[0].start)
