"""Keys and values in blocks of memory that is reserved at start."""

from __future__ import annotations

import torch

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

    def slots(self, blocks: list[int], start: int, stop: int) -> list[int]:
        """Slots of the positions start..stop-1 of a request that holds `blocks`."""
        size = self.pool.block_size
        return [blocks[position // size] * size + position % size for position in range(start, stop)]
