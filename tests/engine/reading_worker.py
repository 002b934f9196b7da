"""A network without numbers: every token that it draws depends on all that it finds in memory, and it notices what is wrong.

Keys and values of a position are the digest of all tokens up to it, so that a block that was computed for another
beginning, written by two, or lost, shows in the tokens of whoever reads it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from itertools import count

from service.engine.lane import Lane, Limits
from service.engine.loop import Engine, Served
from service.engine.messages import ModelCard
from service.procedures.drafts import accepted, branch
from service.procedures.types import Reading, TokenRow
from service.workers.block_pool import BlockPool
from service.workers.types import RowError, TokenMove, TokenOutcome, TokenRead

MASK = 0
VOCABULARY = 7
CARD = ModelCard(
    "text", "text", "", [], ["autoregressive", "block_diffusion"], "autoregressive", 0, VOCABULARY, 10_000,
    mask_token_id=MASK,
)  # fmt: skip


def digest(*parts: object) -> bytes:
    return blake2b(repr(parts).encode(), digest_size=16).digest()


class ReadingWorker:
    """`fails` says whether the row of a seed at a position fails; what it has written by then is rubbish."""

    def __init__(self, pool: BlockPool, fails: Callable[[int, int], bool] = lambda seed, position: False) -> None:
        self.pool = pool
        self.computed = 0
        self._fails = fails
        self._memory: list[bytes] = [b"never written"] * (pool.blocks * pool.block_size)

    def run(self, moves: Sequence[TokenMove]) -> list[TokenOutcome]:
        return [self._move(move) for move in moves]

    def _move(self, move: TokenMove) -> TokenOutcome:
        readings: list[Reading] = []
        for row in move.rows:
            stop = row.start + len(row.tokens)
            for position in range(row.start, stop):
                assert self.pool.holders(move.blocks[position // self.pool.block_size]) == 1, "written, but held by others"
            if self._fails(move.draws.seed, row.start):
                for position in range(row.start, stop):
                    self._memory[self._slot(move, position)] = b"rubbish"
                return RowError("as the test wants it")
            readings = self._row(move, row)
        return TokenRead(readings)

    def _row(self, move: TokenMove, row: TokenRow) -> list[Reading]:
        seen = self._memory[self._slot(move, row.start - 1)] if row.start else b""
        draft, chains = row.draft(), []
        for offset, token in enumerate(row.tokens):
            if row.mode == "tree" and offset:
                seen = chains[1 + draft.parents[offset - 1]]
            seen = digest(seen, token)
            chains.append(seen)
            self._memory[self._slot(move, row.start + offset)] = seen if row.keep else b"scratch"
        self.computed += len(row.tokens) if row.keep else 0
        readings = []
        for place, offset in enumerate(row.wanted):
            # A causal token depends on all before it, as memory has them; one of a block on the whole block too.
            last = row.start + (offset + 1 if row.mode == "causal" else 0)
            places = list(range(last))
            if row.mode == "tree":
                places += [row.start, *(row.start + 1 + i for i in branch(draft, offset - 1))]
            seen_there = b"".join(self._memory[self._slot(move, position)] for position in places)
            own = chains[-1] if row.mode == "block" else 0
            number = digest(seen_there, own, move.draws.seed, row.positions[offset], row.draw)
            if row.scored:
                # As likely as all that it finds in memory says.
                told = digest(seen_there, row.scored[place])
                readings.append(Reading(row.scored[place], told[0] / 256, -1 - int.from_bytes(told[:6]) / 2**40))
                continue
            measures = (number[2] / 128, number[3] / 255) if row.spread else (None, None)
            logprob = None if move.draws.logprobs is None else -number[1] / 255
            readings.append(
                Reading(1 + number[0] % (VOCABULARY - 1), number[1] / 255, logprob, entropy=measures[0], margin=measures[1])
            )
        if row.mode == "tree":
            path = accepted(draft, [reading.token for reading in readings])
            for depth, i in enumerate(path, 1):
                self._memory[self._slot(move, row.start + depth)] = chains[1 + i]
        return readings

    def _slot(self, move: TokenMove, position: int) -> int:
        size = self.pool.block_size
        return move.blocks[position // size] * size + position % size


def reading_engine(
    blocks: int, block_size: int = 4, limits: Limits | None = None, prefix_cache: bool = True,
    fails: Callable[[int, int], bool] = lambda seed, position: False, card: ModelCard = CARD,
) -> Engine:  # fmt: skip
    """An engine whose clock goes on by a millisecond each time that it is read."""
    pool = BlockPool(blocks, block_size)
    clock = count()
    lane = Lane(pool, limits or Limits(8, 32, 16), prefix_cache)
    return Engine([Served(card, lane, ReadingWorker(pool, fails))], lambda: next(clock) / 1000)
