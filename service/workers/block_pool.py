"""The books of memory that is reserved at start: a pool of equal blocks, handed out and taken back.

A block is `kv_block` token positions of a text model's KV cache, or the latent slot of one image request.
"""

from __future__ import annotations


class BlockPool:
    """Which blocks are free. Pure books, no tensors."""

    def __init__(self, blocks: int, block_size: int = 1) -> None:
        self.blocks = blocks
        self.block_size = block_size
        self._free = list(range(blocks - 1, -1, -1))

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def used(self) -> int:
        return self.blocks - len(self._free)

    def blocks_for(self, positions: int) -> int:
        return -(-positions // self.block_size)

    def allocate(self, count: int) -> list[int]:
        assert count <= len(self._free), f"{count} blocks asked, {len(self._free)} free"
        return [self._free.pop() for _ in range(count)]

    def release(self, blocks: list[int]) -> None:
        self._free.extend(blocks)
        assert len(set(self._free)) == len(self._free) <= self.blocks, "a block was given back twice"
