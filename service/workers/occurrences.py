"""Which tokens a request has seen, and how often it generated each: what penalties are made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Seen:
    """Distinct tokens, and how often each was generated (0: it stood in the prompt alone)."""

    tokens: NDArray[np.int64]
    counts: NDArray[np.float32]


class Occurrences:
    """Grows with the committed tokens and is never counted anew: a token costs one step, whatever came before.

    `tokens` and `counts` are parallel: the distinct tokens in order of appearance, and how often each was generated (0: it
    stood in the prompt alone).
    """

    def __init__(self, prompt_length: int) -> None:
        self._prompt_length = prompt_length
        self._taken = 0
        self._place: dict[int, int] = {}
        self._tokens = np.zeros(64, np.int64)
        self._counts = np.zeros(64, np.float32)

    def take(self, committed: Sequence[int]) -> None:
        """The request's committed tokens, the prompt first; those that were taken before are not looked at again."""
        for at in range(self._taken, len(committed)):
            token = committed[at]
            place = self._place.setdefault(token, len(self._place))
            if place == len(self._tokens):
                self._tokens = np.concatenate((self._tokens, np.zeros_like(self._tokens)))
                self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._tokens[place] = token
            self._counts[place] += at >= self._prompt_length
        self._taken = len(committed)

    def ahead(self, guesses: Sequence[int]) -> Seen:
        """What there would be if the guesses were generated next."""
        extra = Counter(guesses)
        new = [token for token in extra if token not in self._place]
        counts = np.concatenate((self.counts, np.zeros(len(new), np.float32)))
        for token, count in extra.items():
            counts[self._place[token] if token in self._place else len(self._place) + new.index(token)] += count
        return Seen(np.concatenate((self.tokens, np.array(new, np.int64))), counts)

    @property
    def tokens(self) -> NDArray[np.int64]:
        return self._tokens[: len(self._place)]

    @property
    def counts(self) -> NDArray[np.float32]:
        return self._counts[: len(self._place)]
