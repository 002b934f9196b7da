"""The books of memory that is reserved at start: a pool of equal blocks, handed out, shared and taken back.

A block is `kv_block` token positions of a text model's KV cache, or the latent slot of one image request.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence


class BlockPool:
    """Who holds which block, and what the blocks contain that can be shared. Pure books, no tensors.

    A block is `used` while somebody holds it; `cached` when nobody does, but its content is known by a key and can be
    held again; `free` otherwise. The cached block that was let go longest ago is the first to lose its content.
    """

    def __init__(self, blocks: int, block_size: int = 1) -> None:
        self.block_size = block_size
        self.resize(blocks)

    def resize(self, blocks: int) -> None:
        """So many blocks, all of them free; for a pool of which nobody holds any."""
        assert not any(getattr(self, "_holders", ())), "somebody holds a block"
        self.blocks = blocks
        self._free = list(range(blocks - 1, -1, -1))
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._holders = [0] * blocks
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}

    @property
    def free(self) -> int:
        return len(self._free)

    @property
    def cached(self) -> int:
        return len(self._cached)

    @property
    def used(self) -> int:
        return self.blocks - self.free - self.cached

    @property
    def available(self) -> int:
        """Blocks that `allocate` can give."""
        return self.free + self.cached

    def blocks_for(self, positions: int) -> int:
        return -(-positions // self.block_size)

    def holders(self, block: int) -> int:
        return self._holders[block]

    def unshared(self, blocks: Sequence[int]) -> list[int]:
        """Those that nobody else holds."""
        return [block for block in blocks if self._holders[block] == 1]

    def allocate(self, count: int) -> list[int]:
        """Blocks for one holder who will write them; what was cached in them is forgotten."""
        assert count <= self.available, f"{count} blocks asked, {self.available} available"
        blocks = []
        for _ in range(count):
            block = self._free.pop() if self._free else self._evict()
            self._holders[block] = 1
            blocks.append(block)
        return blocks

    def find(self, key: bytes) -> int | None:
        """The block with this content."""
        return self._by_key.get(key)

    def hold(self, block: int) -> None:
        """One holder more of a block that was found: it may be read, not written."""
        assert block in self._keys
        self._cached.pop(block, None)
        self._holders[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """A held block is full and will not be written again. Where another block has the same content, that one serves."""
        assert self._holders[block] > 0
        if key not in self._by_key:
            assert block not in self._keys
            self._keys[block] = key
            self._by_key[key] = block

    def forget(self, blocks: list[int]) -> None:
        """Nobody shall find the content of these any more."""
        for block in blocks:
            key = self._keys.pop(block, None)
            if key is not None:
                del self._by_key[key]
            if block in self._cached:
                del self._cached[block]
                self._free.append(block)

    def release(self, blocks: list[int]) -> None:
        """One holder less of each. The last ones are the first to go: nobody finds them without those before them."""
        for block in reversed(blocks):
            assert self._holders[block] > 0, "a block was given back twice"
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if block in self._keys:
                    self._cached[block] = None
                else:
                    self._free.append(block)

    def check_books(self, held: Mapping[int, int]) -> None:
        """`held` says how many hold each block. Raises AssertionError where the books say otherwise."""
        assert {block: count for block, count in enumerate(self._holders) if count} == dict(held), "holders differ"
        free, cached = set(self._free), set(self._cached)
        assert len(free) == self.free and not free & cached and not (free | cached) & held.keys(), "a block is listed twice"
        assert free | cached | held.keys() == set(range(self.blocks)), "a block is lost"
        assert cached <= self._keys.keys() and not free & self._keys.keys(), "what is cached has no key, or what is free has one"
        assert {key: block for block, key in self._keys.items()} == self._by_key, "a key leads to another block"

    def _evict(self) -> int:
        block, _ = self._cached.popitem(last=False)
        del self._by_key[self._keys.pop(block)]
        return block
