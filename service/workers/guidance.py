"""Outputs with and without the text become one (classifier-free guidance, arXiv 2207.12598)."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from kernels.sampler_update import Guidance
from service.models.latent_network import LatentNetwork
from service.procedures.picture_rows import LatentRow
from service.workers.staging import staged


def to_be_guided(network: LatentNetwork, rows: Sequence[LatentRow], out: Tensor) -> tuple[Tensor, Guidance | None]:
    """f [R, C, H, W] of R rows from the network's outputs (see `guided`), and what the sampler step has still to do to it: plain
    guidance is no pass over memory of its own."""
    paired = [i for i, row in enumerate(rows) if row.paired]
    if not paired or network.own_guidance or any(rows[i].rescale for i in paired):
        return guided(network, rows, out), None
    partner = [-1] * len(rows)
    for place, i in enumerate(paired):
        partner[i] = place
    (index,), (scale,) = staged(out.device, [partner], [[row.guidance for row in rows]])
    return out[: len(rows)], Guidance(out[len(rows) :], index, scale)


def guided(network: LatentNetwork, rows: Sequence[LatentRow], out: Tensor) -> Tensor:
    """f [R, C, H, W] of R rows from the network's outputs: one a row and behind them, for each paired row, one without text."""
    paired = [i for i, row in enumerate(rows) if row.paired]
    f = out[: len(rows)]
    if not paired:
        return f
    f = f.clone()
    (index,), (scale, shares) = staged(
        out.device, [paired], [[rows[i].guidance for i in paired], [rows[i].rescale for i in paired]]
    )  # fmt: skip
    conditional = f[index]
    combined = network.guide(conditional, out[len(rows) :], scale)
    f[index] = rescaled(combined, conditional, shares) if any(rows[i].rescale for i in paired) else combined
    return f


def rescaled(combined: Tensor, conditional: Tensor, share: Tensor) -> Tensor:
    """`share` [R] of each row with the standard deviation of the conditional output, which guidance has enlarged, and the
    rest as it is (arXiv 2305.08891, eq. 15 and 16). A row whose share is 0, or whose output is the same everywhere, keeps its
    bits."""
    own = combined.flatten(1).std(dim=1)
    ratio = conditional.flatten(1).std(dim=1) / own
    factor = torch.where((share > 0.0) & (own > 0.0), share * ratio + (1.0 - share), torch.ones_like(share))
    return combined * factor.view(-1, 1, 1, 1)
