"""What a text request has in the cache: what it shares with others, what it computed for all, and how that is counted."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from service.engine.base_request import Request
from service.engine.scoring import Scoring
from service.procedures.types import TokenState
from service.workers.block_pool import BlockPool


@dataclass(slots=True, eq=False)
class SharingRequest(Request):
    """Its table names blocks by their tokens. `scoring` owes the log-probabilities of its prompt, where they were asked for.

    Positions before `reached` were computed or shared once; those of the prompt among them count as `prefilled` or as
    `cached_tokens`, and do not count again when the request is set back and computes them anew.
    """

    state: TokenState = msgspec.UNSET  # type: ignore[assignment]
    reached: int = 0
    prefilled: int = 0
    cached_tokens: int = 0
    scoring: Scoring | None = None

    @property
    def owes_scores(self) -> bool:
        return self.scoring is not None and not self.scoring.over

    @property
    def shareable(self) -> int:
        """Tokens, from the first on, that others may have computed: behind the rest something is to be read."""
        return self.scoring.told if self.scoring is not None and self.owes_scores else len(self.state.tokens) - 1

    def next_key(self, size: int) -> bytes | None:
        """The name of the block that is computed next, or of the first of its group, if it can be shared."""
        group = size * self.table.group
        start = self.state.cached // group * group
        return self.table.key(self.state.tokens, start // size, size) if start + group <= self.shareable else None

    def matches(self, pool: BlockPool) -> list[int]:
        """Blocks of the pool that spare this request a computation, next ones first."""
        group = pool.block_size * self.table.group
        first, inside = divmod(self.state.cached, group)
        stop = self.shareable // group
        return [] if inside else self.table.matches(pool, self.state.tokens, first * self.table.group, stop * self.table.group)

    def share(self, pool: BlockPool) -> int:
        """Hold what others have computed of this request's tokens; how many tokens of the prompt that spared."""
        size = pool.block_size
        for block in self.matches(pool):
            self.table.share(pool, self.state.cached // size, block)
            self.state.cached += size
        spared = self._reach()
        self.cached_tokens += spared
        return spared

    def publish(self, pool: BlockPool) -> None:
        """Let others share the blocks that are full and computed, as far as that has landed."""
        group = self.table.group
        sound = min([self.state.cached, *(flown.start for flown in self.flying)])
        self.table.publish(pool, self.state.tokens, sound // (pool.block_size * group) * group)

    def computing(self, size: int) -> list[bytes]:
        """The names of the blocks, or of the first of each group, that launched forwards compute."""
        if not self.flying:
            return []
        group = size * self.table.group
        stop = self.shareable if self.unknown else min(self.state.cached, self.shareable)
        firsts = range(self.flying[0].start // group, stop // group)
        return [self.table.key(self.state.tokens, number * self.table.group, size) for number in firsts]

    def _reach(self) -> int:
        """Tokens of the prompt that are in the cache for the first time."""
        prompt = self.state.prompt_length
        fresh = min(self.state.cached, prompt) - min(self.reached, prompt)
        self.reached = max(self.reached, self.state.cached)
        return max(0, fresh)
