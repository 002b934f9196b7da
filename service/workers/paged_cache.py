"""Keys and values in blocks of memory that is reserved at start."""

from __future__ import annotations

import torch
from torch import Tensor

from service.workers.block_pool import BlockPool


class PagedCache:
    """Keys and values [layers, 2, slots, kv_heads, head_dim] in one tensor, reserved at start."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, pool: BlockPool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.pool = pool
        slots = pool.blocks * pool.block_size
        self.store = torch.zeros(layers, 2, slots, kv_heads, head_dim, dtype=dtype, device=device)

    @staticmethod
    def block_bytes(layers: int, kv_heads: int, head_dim: int, block_size: int, dtype: torch.dtype) -> int:
        return layers * 2 * block_size * kv_heads * head_dim * dtype.itemsize

    def slots(self, blocks: list[int], start: int, stop: int) -> Tensor:
        """Slots int64 [stop - start] of the positions start..stop-1 of a request that holds `blocks`."""
        positions = torch.arange(start, stop)
        table = torch.tensor(blocks, dtype=torch.int64)
        size = self.pool.block_size
        return table[positions // size] * size + positions % size
