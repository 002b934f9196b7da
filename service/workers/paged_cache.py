"""Keys and values in blocks of memory that is reserved at start."""

from __future__ import annotations

from typing import Self

import torch

from service.models.decoder_config import DecoderConfig
from service.workers.block_pool import BlockPool


class PagedCache:
    """Keys and values [layers, blocks, block_size, 2, kv_heads, head_dim] in one tensor, reserved at start."""

    def __init__(
        self, layers: int, kv_heads: int, head_dim: int, pool: BlockPool, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.pool = pool
        shape = (layers, pool.blocks, pool.block_size, 2, kv_heads, head_dim)
        self.store = torch.zeros(shape, dtype=dtype, device=device)

    @classmethod
    def of(cls, config: DecoderConfig, pool: BlockPool, dtype: torch.dtype, device: torch.device) -> Self:
        return cls(config.num_hidden_layers, config.num_key_value_heads, config.head_dim, pool, dtype, device)

    @staticmethod
    def block_bytes(config: DecoderConfig, block_size: int, dtype: torch.dtype) -> int:
        return config.num_hidden_layers * 2 * block_size * config.num_key_value_heads * config.head_dim * dtype.itemsize

    def write(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """key and value [N, kv_heads, head_dim] of the positions that lie in `slots`, int64 [N]."""
        both = torch.stack((key, value), dim=1)
        self.store[layer].flatten(0, 1).index_copy_(0, slots, both.to(self.store.dtype))

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy the keys and values of some slots to others; all are read before any is written."""
        slots = self.store.flatten(1, 2)
        places = torch.tensor([sources, targets], device=self.store.device)
        slots[:, places[1]] = slots[:, places[0]]

    def clear(self, blocks: list[int]) -> None:
        """Forget numbers that are not finite: whoever gets these blocks next multiplies what it does not see by zero."""
        self.store[:, blocks] = 0
