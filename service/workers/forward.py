"""What a forward of packed rows gives, whoever computes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from service.workers.packed_rows import PackedRows


@dataclass(frozen=True, slots=True)
class ForwardOutput:
    """`logits` float32 [W, vocabulary] of the wanted tokens; whether a token's numbers are `finite`, bool [N]; the final
    normed `states` [N, hidden] of all tokens, where they were asked for."""

    logits: Tensor
    finite: Tensor
    states: Tensor | None = None


class Forward(Protocol):
    """One decoder over one paged cache."""

    def __call__(self, packed: PackedRows, inputs: Tensor | None = None, states: bool = False) -> ForwardOutput:
        """`inputs` [N, hidden] stand in for the tokens' embeddings; with `states` the hidden states are given too."""
        ...

    def embed(self, tokens: Tensor) -> Tensor:
        """tokens int64 [N] -> [N, hidden], as the network scales them."""
        ...
