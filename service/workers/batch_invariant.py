"""Matrix products whose every row has the same bits whatever else is in the batch.

A matrix library chooses its kernel, and with it the order of its sums, by the shape of the whole product. Here every
product has one shape: tiles of TILE rows, the last one padded. Compare He et al., "Defeating Nondeterminism in LLM
Inference" (2025).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from service.models.decoder import FeedForward
from service.models.weight_only import Fp8Linear, Int8Linear

TILE = 8


def tiled_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, in] -> [N, out], in products of exactly TILE rows."""
    return in_tiles(lambda tile: F.linear(tile, weight, bias), x)


def in_tiles(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """What a function of rows gives for x [N, ...], computed TILE rows at a time."""
    padded = F.pad(x, (0, 0, 0, -len(x) % TILE))
    return torch.cat([function(tile) for tile in padded.split(TILE)])[: len(x)]


class TiledLinear(nn.Linear):
    """A linear layer of packed tokens that computes in tiles."""

    def forward(self, x: Tensor) -> Tensor:
        return tiled_linear(x, self.weight, self.bias)


class TiledInt8Linear(Int8Linear):
    """The same for int8 weights."""

    def forward(self, x: Tensor) -> Tensor:
        return in_tiles(super().forward, x)


class TiledFp8Linear(Fp8Linear):
    """The same for fp8 weights."""

    def forward(self, x: Tensor) -> Tensor:
        return in_tiles(super().forward, x)


class TiledFeedForward(FeedForward):
    """A feed-forward layer in tiles: vectorised activations, too, round otherwise at the end of an array."""

    def forward(self, x: Tensor) -> Tensor:
        return in_tiles(super().forward, x)


def make_batch_invariant(network: nn.Module) -> None:
    """Give the layers of a network over packed tokens their tiled forms, in place, sharing the weights."""
    tiled: dict[type, type] = {
        nn.Linear: TiledLinear, Int8Linear: TiledInt8Linear, Fp8Linear: TiledFp8Linear, FeedForward: TiledFeedForward,
    }  # fmt: skip
    for module in network.modules():
        if type(module) in tiled:
            module.__class__ = tiled[type(module)]
