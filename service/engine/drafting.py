"""How many guesses a forward verifies: as many as raise the tokens a second of the whole batch. Pure.

The goodput of SmartSpec (Liu et al., arXiv 2406.14066), with each request's own acceptance and the lane's measured cost.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

from service.procedures.drafts import reordered
from service.procedures.types import Draft

PROBE_FORWARDS = 32
MEMORY = 0.95
TRIAL_FORWARDS = 8
LONG_STRETCH = 192
TRIAL_MEMORY = 0.98


@dataclass(slots=True)
class Acceptance:
    """How often one request's guesses are right, given that those that lead to them were: of the first guess at a place, and
    of the second and so on given that those before it are wrong. It begins with confidence, forgets what is long past, and is
    given the benefit of the doubt once it has guessed nothing for `PROBE_FORWARDS` forwards."""

    right: list[float] = field(default_factory=lambda: [1.8, 1.0, 1.0, 1.0])
    tried: list[float] = field(default_factory=lambda: [2.0, 2.0, 2.0, 2.0])
    idle: int = 0

    def observe(self, draft: Draft, path: Sequence[int]) -> None:
        """A forward verified these guesses, of which those of `path` were right; the others say nothing of what is behind."""
        if not draft.tokens:
            self.idle += 1
            return
        self.idle = 0
        ranks = _ranks(draft)
        right, tried = [0] * len(self.right), [0] * len(self.right)
        for at, then in zip((-1, *path), (*path, None), strict=True):
            for i, parent in enumerate(draft.parents):
                if parent == at and (then is None or ranks[i] <= ranks[then]):
                    tried[ranks[i]] += 1
                    right[ranks[i]] += i == then
        for rank, count in enumerate(tried):
            if count:
                self.right[rank] = MEMORY * self.right[rank] + right[rank]
                self.tried[rank] = MEMORY * self.tried[rank] + count

    def gains(self, draft: Draft) -> list[float]:
        """Tokens that each of the guesses adds in expectation: never more than the one before it or the one beside it."""
        rates: list[float] = []
        left = 1.0
        for right, tried in zip(self.right, self.tried, strict=True):
            rates.append(min([left * right / tried, *rates]))
            left *= 1.0 - right / tried
        gains: list[float] = []
        for parent, rank in zip(draft.parents, _ranks(draft), strict=True):
            rate = max(rates[0], 0.9) if parent < 0 and not rank and self.idle >= PROBE_FORWARDS else rates[rank]
            gains.append(rate * (gains[parent] if parent >= 0 else 1.0))
        return gains

    def arranged(self, draft: Draft) -> Draft:
        """The guesses in order of what they gain, so that the first ones are the best smaller tree."""
        if draft.is_chain:
            return draft
        gains = self.gains(draft)
        return reordered(draft, sorted(range(len(gains)), key=lambda i: -gains[i]))


def _ranks(draft: Draft) -> list[int]:
    """How many guesses stand before each at the same place, 3 where more do."""
    beside = [0] * (len(draft.tokens) + 1)
    ranks = []
    for parent in draft.parents:
        ranks.append(min(beside[parent + 1], 3))
        beside[parent + 1] += 1
    return ranks


Situation = tuple[int, tuple[str, ...]]
"""How many rows move, as a power of two, and who guesses."""


@dataclass(slots=True)
class Trial:
    """Whether guessing pays, by what forwards gave that guessed and forwards that did not; each counts for less the longer
    ago it was. `allot` trusts a line of costs, which knows nothing of what the drafter itself takes.

    Short stretches of both are compared, then a long one of the better follows, and so on. The first forward of a stretch
    does not count: it verifies what the stretch before it guessed, or nothing.
    """

    guessing: bool = True
    _left: int = TRIAL_FORWARDS + 1
    _long: bool = False
    _tokens: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _seconds: list[float] = field(default_factory=lambda: [0.0, 0.0])
    _first: bool = True

    def observe(self, tokens: int, seconds: float) -> None:
        """A forward that did as `guessing` says gave so many tokens of output."""
        if not self._first:
            for sums, value in ((self._tokens, tokens), (self._seconds, seconds)):
                sums[self.guessing] = TRIAL_MEMORY * sums[self.guessing] + value
        self._first = False
        self._left -= 1
        if self._left == 0:
            self._next_stretch()

    def _next_stretch(self) -> None:
        before, self._long = self.guessing, not self._long and min(self._seconds) > 0.0
        if self._long:
            plain, guessed = (self._tokens[way] / self._seconds[way] for way in (False, True))
            self.guessing = guessed > plain
        else:
            self.guessing = not self.guessing
        self._left = LONG_STRETCH if self._long else TRIAL_FORWARDS + 1
        self._first = self.guessing != before


def allot(line: tuple[float, float] | None, size: int, tokens: int, room: int, gains: Sequence[Sequence[float]]) -> list[int]:
    """How many of its guesses each request gets verified.

    line: seconds of a forward, (fixed, slope a token); None where they are not known, which is found out by trying. size,
    tokens: of the forward without guesses: what it computes and what it adds to outputs. room: most guesses of all.
    gains: expected tokens of every request's guesses, falling; infinite for those that are verified at any cost.
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
        expected, seconds, room = expected + min(gain, 1.0), seconds + slope, room - 1
        counts[i] += 1
        if counts[i] < len(gains[i]):
            heapq.heapreplace(best, (-gains[i][counts[i]], i))
        else:
            heapq.heappop(best)
    return counts
