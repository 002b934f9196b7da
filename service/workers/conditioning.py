"""What a canvas takes in beside its tokens: the distributions that the forward before it read there.

Only their mean embeddings are kept, a vector a position, not the distributions. They travel with their request, as something
that nobody but this worker looks into: they live as long as it does, also while it is set back, and no longer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from service.models.decoder import Decoder
from service.workers.types import TokenMove


class Conditioning:
    """For networks with `self_conditioning`."""

    def __init__(self, network: Decoder) -> None:
        self._network = network

    def inputs(self, moves: Sequence[TokenMove], embeddings: Tensor) -> Tensor:
        """embeddings [N, d] of all packed tokens -> [N, d], those of canvases joined with what their moves carry."""
        at = 0
        parts = []
        for move in moves:
            for row in move.rows:
                own = embeddings[at : at + len(row.tokens)]
                at += len(row.tokens)
                if row.mode == "block":
                    mixed = torch.zeros_like(own) if move.carried is None else move.carried
                    assert isinstance(mixed, Tensor)
                    own = self._network.model.self_conditioning(own, mixed)
                parts.append(own)
        return torch.cat(parts)

    def carried(self, logits: Tensor, temperatures: Tensor) -> Tensor:
        """logits [L, V] that a canvas' tokens were drawn from, temperatures [L] -> [L, d]. One canvas at a time: the product's
        shape, and with it every bit, depends on no other."""
        return self._network.mixed((logits / temperatures[:, None]).softmax(-1))
