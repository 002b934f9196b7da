"""Keys and values in blocks of memory that is reserved at start."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Self

import torch

from service.models.decoder_config import DecoderConfig
from service.workers.block_pool import BlockPool


class PagedCache:
    """Keys and values in one tensor, `store`, reserved at start: [layers, blocks, block_size, 2, kv_heads, head_dim] where all
    layers are of one width, else flat. `layers` are each layer's [blocks, block_size, 2, kv_heads, head_dim] of it."""

    def __init__(
        self, widths: Sequence[tuple[int, int]], pool: BlockPool, dtype: torch.dtype, device: torch.device
    ) -> None:
        """`widths`: heads of keys and values, and the numbers of one, of each layer."""
        self.pool = pool
        self._widths = tuple(widths)
        self.store = torch.zeros(0, dtype=dtype, device=device)
        self.reserve()

    def reserve(self) -> None:
        """As many blocks as the pool has now, all zero."""
        widths, dtype, device = self._widths, self.store.dtype, self.store.device
        # What was reserved before is given back first.
        self._parts = self.layers = []
        self.store = torch.zeros(0, dtype=dtype, device=device)
        places = (self.pool.blocks, self.pool.block_size, 2)
        if len(set(widths)) == 1:
            self.store = torch.zeros((len(widths), *places, *widths[0]), dtype=dtype, device=device)
            self._parts = [self.store]
        else:
            sizes = [prod(places) * prod(width) for width in widths]
            self.store = torch.zeros(sum(sizes), dtype=dtype, device=device)
            parts = zip(self.store.split(sizes), widths, strict=True)
            self._parts = [part.view(1, *places, *width) for part, width in parts]
        self.layers = [layer for part in self._parts for layer in part]

    @classmethod
    def of(cls, config: DecoderConfig, pool: BlockPool, dtype: torch.dtype, device: torch.device) -> Self:
        return cls(config.widths(), pool, dtype, device)

    @staticmethod
    def block_bytes(config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
        return 2 * block_size * sum(prod(width) for width in config.widths()) * dtype.itemsize

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """key and value [N, kv_heads, head_dim] of the positions that lie in `slots`, int64 [N]."""
        both = torch.stack((key, value), dim=1)
        self.layers[layer].flatten(0, 1).index_copy_(0, slots, both.to(self.store.dtype))

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy the keys and values of some slots to others; all are read before any is written."""
        places = torch.tensor([sources, targets], device=self.store.device)
        for part in self._parts:
            slots = part.flatten(1, 2)
            slots[:, places[1]] = slots[:, places[0]]

    def clear(self, blocks: list[int]) -> None:
        """Forget numbers that are not finite: whoever gets these blocks next multiplies what it does not see by zero."""
        for part in self._parts:
            part[:, blocks] = 0
