"""Sets of tokens on their way to a condition: what a picture has so far is read, and the next positions are prepared."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from service.models.latent_network import ExpandingNetwork
from service.workers.types import Encoded, ExpandMove


def expanded(network: ExpandingNetwork, moves: Sequence[ExpandMove], states: Tensor) -> list[Encoded]:
    """Conditions of the chosen tokens, the latent that is known, 0 elsewhere, and where the chosen ones are. states float32
    [R, C, H, W] are right where tokens are known, and may hold anything elsewhere."""
    known = network.covered([move.known for move in moves], states)
    chosen = network.covered([move.chosen for move in moves], states)
    given = torch.where(known, states, torch.zeros_like(states))
    paired = [i for i, move in enumerate(moves) if move.paired]
    rows = [*range(len(moves)), *paired]
    texts = [move.encoded.conditions[0] for move in moves] + [moves[i].encoded.conditions[1] for i in paired]
    conditions = network.expand(given[rows], [moves[i].known for i in rows], [moves[i].chosen for i in rows], texts)
    unconditional = dict(zip(paired, conditions[len(moves) :], strict=True))
    return [
        Encoded((conditions[i], unconditional[i]) if i in unconditional else (conditions[i],), given[i], chosen[i].float())
        for i in range(len(moves))
    ]
