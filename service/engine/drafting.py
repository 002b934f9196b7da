"""How many guesses a forward verifies: as many as raise the tokens a second of the whole batch. Pure.

The goodput of SmartSpec (Liu et al., arXiv 2406.14066), with each request's own acceptance and the lane's measured cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

PROBE_FORWARDS = 32
MEMORY = 0.95


@dataclass(slots=True)
class Acceptance:
    """How often one request's guesses are right, given that those before them were. It begins with confidence, forgets what
    is long past, and is given the benefit of the doubt once it has guessed nothing for `PROBE_FORWARDS` forwards."""

    right: float = 1.8
    tried: float = 2.0
    idle: int = 0

    def observe(self, accepted: int, drafted: int) -> None:
        """A forward verified `drafted` guesses; nothing is learnt of those behind the first that was wrong."""
        if not drafted:
            self.idle += 1
            return
        self.idle = 0
        self.right = MEMORY * self.right + accepted
        self.tried = MEMORY * self.tried + min(accepted + 1, drafted)

    def gains(self, count: int) -> list[float]:
        """Tokens that each of a chain of guesses adds in expectation: never more than the one before it."""
        rate = self.right / self.tried
        first = max(rate, 0.9) if self.idle >= PROBE_FORWARDS else rate
        return [first * rate**depth for depth in range(count)]


def allot(line: tuple[float, float] | None, size: int, tokens: int, room: int, gains: Sequence[Sequence[float]]) -> list[int]:
    """How many of its guesses each request gets verified.

    line: seconds of a forward, (fixed, slope a token); None where they are not known, which is found out by trying. size,
    tokens: of the forward without guesses: what it computes and what it adds to outputs. room: most guesses of all.
    gains: expected tokens of every request's guesses, falling.
    """
    fixed, slope = line or (0.0, 0.0)
    counts = [0] * len(gains)
    expected, seconds = float(tokens), fixed + slope * size
    best = [(-own[0], i) for i, own in enumerate(gains) if own]
    heapq.heapify(best)
    while best and room > 0:
        gain, i = -best[0][0], best[0][1]
        if gain * seconds <= slope * expected and slope > 0.0:
            break
        expected, seconds, room = expected + gain, seconds + slope, room - 1
        counts[i] += 1
        if counts[i] < len(gains[i]):
            heapq.heapreplace(best, (-gains[i][counts[i]], i))
        else:
            heapq.heappop(best)
    return counts
