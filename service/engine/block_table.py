"""The blocks that one request holds, and the names of what they contain."""

from __future__ import annotations

from array import array
from dataclasses import dataclass, field
from hashlib import blake2b

from service.workers.block_pool import BlockPool


@dataclass(slots=True, eq=False)
class BlockTable:
    """A request's blocks in the order of its positions.

    A full block is named by a key: a digest of the key before it and of its own token ids. What keys and values are kept
    depends, whatever the procedure, on the model and the tokens up to their position, or up to the end of their diffusion
    block in models whose text sees itself in blocks. There a `group` of cache blocks, which ends where a diffusion block
    ends, is named by all its tokens and shared as a whole. A key of one model's pool therefore names one content. The
    digest cannot be made to collide (BLAKE2b, 256 bit). `root` names what else lies in the blocks: a drafter's own keys and
    values, which only its requests leave there.
    """

    group: int = 1
    root: bytes = b""
    blocks: list[int] = field(default_factory=list)
    published: int = 0
    _keys: list[bytes] = field(default_factory=list)

    def key(self, tokens: list[int], index: int, size: int) -> bytes:
        """The name of the full block `index`; the tokens up to its group's end must not change any more."""
        (number, place), length = divmod(index, self.group), self.group * size
        assert (number + 1) * length <= len(tokens)
        while len(self._keys) <= number:
            start = len(self._keys) * length
            parent = self._keys[-1] if self._keys else self.root
            own = array("q", tokens[start : start + length]).tobytes()
            self._keys.append(blake2b(parent + own, digest_size=32).digest())
        return self._keys[number] + place.to_bytes(2) if place else self._keys[number]

    def matches(self, pool: BlockPool, tokens: list[int], first: int, stop: int) -> list[int]:
        """Blocks of the pool that contain what this request's blocks first..stop-1 will, as far as whole groups come in a row."""
        found = []
        for index in range(first, stop):
            block = pool.find(self.key(tokens, index, pool.block_size))
            if block is None:
                break
            found.append(block)
        return found[: len(found) // self.group * self.group]

    def share(self, pool: BlockPool, index: int, block: int) -> None:
        """Hold a block of the pool at this place instead of one of one's own."""
        pool.hold(block)
        if index < len(self.blocks):
            pool.release([self.blocks[index]])
            self.blocks[index] = block
        else:
            assert index == len(self.blocks)
            self.blocks.append(block)

    def publish(self, pool: BlockPool, tokens: list[int], stop: int) -> None:
        """The blocks before `stop` are computed; others may share them."""
        for index in range(self.published, stop):
            pool.publish(self.blocks[index], self.key(tokens, index, pool.block_size))
        self.published = stop

    def release(self, pool: BlockPool) -> None:
        pool.release(self.blocks)
        self.blocks = []
        self.published = 0
