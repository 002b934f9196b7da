"""Tokens that a device has drawn, on their way to the host."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from service.procedures.types import Reading
from service.workers.types import RowError, TokenMove, TokenOutcome, TokenRead


@dataclass(frozen=True, slots=True)
class Likelihoods:
    """Of the draws `asked`, each with how many of the likeliest it wants: log-probabilities [A] of what was drawn, those of the
    likeliest [A, M], and their ids [A, M]."""

    asked: list[tuple[int, int]]
    own: Tensor
    top: Tensor
    ids: Tensor


@dataclass(frozen=True, slots=True)
class Spread:
    """Of these draws: entropy, margin and the likeliest token, [S] each."""

    draws: list[int]
    entropy: Tensor
    margin: Tensor
    likeliest: Tensor


@dataclass(frozen=True, slots=True)
class Drawn:
    """W draws: whether their logits were finite, the tokens, and how probable they were, [W] each."""

    finite: Tensor
    chosen: Tensor
    confidence: Tensor
    likelihoods: Likelihoods | None
    spread: Spread | None

    def readings(self) -> list[Reading]:
        pairs = zip(self.chosen.tolist(), self.confidence.tolist(), strict=True)
        readings = [Reading(token, confidence) for token, confidence in pairs]
        told = self.likelihoods
        if told is not None:
            rows = zip(told.asked, told.own.tolist(), told.top.tolist(), told.ids.tolist(), strict=True)
            for (i, count), logprob, likeliest, ids in rows:
                top = tuple(zip(ids[:count], likeliest[:count], strict=True))
                readings[i] = replace(readings[i], logprob=logprob, top=top)
        if self.spread is not None:
            columns = (self.spread.entropy.tolist(), self.spread.margin.tolist(), self.spread.likeliest.tolist())
            for i, entropy, margin, likeliest in zip(self.spread.draws, *columns, strict=True):
                readings[i] = replace(readings[i], entropy=entropy, margin=margin, likeliest=likeliest)
        return readings


@dataclass(frozen=True, slots=True)
class Scored:
    """Some of the tokens of a move that were known: whether their logits were finite, their log-probabilities, and those of the
    likeliest tokens with their ids."""

    tokens: Sequence[int]
    finite: Tensor
    own: Tensor
    top: Tensor
    ids: Tensor

    def readings(self) -> list[Reading] | None:
        """None where the logits were not finite."""
        if not all(self.finite.tolist()):
            return None
        rows = zip(self.tokens, self.own.tolist(), self.top.tolist(), self.ids.tolist(), strict=True)
        return [Reading(token, math.exp(own), own, tuple(zip(ids, top, strict=True))) for token, own, top, ids in rows]


class Unread:
    """What will be read of these moves. `chosen` int64 are the tokens that were drawn, on the device, and `places` where those
    of each move that draws begin among them: what comes next can be computed before the host has seen them."""

    def __init__(
        self, moves: Sequence[TokenMove], drawn: Drawn | None, chosen: Tensor | None, places: dict[int, int],
        scored: dict[int, list[Scored]],
    ) -> None:  # fmt: skip
        self.chosen = chosen
        self.places = places
        self._moves = moves
        self._drawn = drawn
        self._scored = scored

    @classmethod
    def nothing(cls, moves: Sequence[TokenMove]) -> Unread:
        """Of moves that want nothing read."""
        return cls(moves, None, None, {}, {})

    def outcomes(self) -> list[TokenOutcome]:
        """When all of it has arrived: an outcome a move."""
        readings = [] if self._drawn is None else self._drawn.readings()
        finite = [] if self._drawn is None else self._drawn.finite.tolist()
        return [self._outcome(i, move, readings, finite) for i, move in enumerate(self._moves)]

    def _outcome(self, i: int, move: TokenMove, readings: list[Reading], finite: list[bool]) -> TokenOutcome:
        if i in self._scored:
            told = [part.readings() for part in self._scored[i]]
            whole = [part for part in told if part is not None]
            if len(whole) < len(told):
                return RowError("the logits are not finite")
            return TokenRead([reading for part in whole for reading in part])
        start = self.places.get(i, 0)
        own = slice(start, start + len(move.rows[-1].wanted))
        if i not in self.places:
            return TokenRead()
        return TokenRead(readings[own]) if all(finite[own]) else RowError("the logits are not finite")
