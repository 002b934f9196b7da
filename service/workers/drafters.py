"""Who guesses the tokens that come next, behind a forward of the model that verifies them.

A guess is drawn as the model's own token at its place will be, with the same random numbers, from what the drafter takes
for the model's distribution: the closer it is, the more often both draw the same. Nothing but the number of guesses that
turn out right depends on a drafter; whatever it gives, also numbers that are not finite, is no more than a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from service.models.heads import FeatureModule, MedusaHeads
from service.procedures.drafts import comb
from service.procedures.types import Axis, Draft, TokenRow
from service.workers.forward import Forward
from service.workers.packed_rows import PackedRows
from service.workers.paged_cache import PagedCache
from service.workers.types import Deferred, Draws, TokenMove

Draw = Callable[[Sequence[Draws], Tensor, Sequence[int], Sequence[int]], list[list[int]]]
"""From how rows are drawn, their logits [R, vocabulary], the positions of the tokens and how many are wanted for each of them
to these tokens, best first."""

MOST_DEFERRED = 32
"""Positions that are put off: the price is that so many of a text's last ones may be missing where it is shared later."""


@dataclass(frozen=True, slots=True)
class Continuation:
    """A request behind a forward. `tokens` are committed and stand at `start`, start + 1, ...; the first went through the
    forward, whose states of them have the indices `states`, and one more may have come of it. `count` guesses of what
    comes behind them are wanted, and `width` at each place. `deferred` is what was put off before."""

    blocks: list[int]
    draws: Draws
    start: int
    tokens: tuple[int, ...]
    states: tuple[int, ...]
    count: int
    deferred: Deferred
    width: int = 1


@dataclass(frozen=True, slots=True)
class Guesses:
    """One request's: a chain, and what could stand in place of each of it."""

    chain: list[int] = field(default_factory=list)
    others: list[list[int]] = field(default_factory=list)


class Drafter(Protocol):
    """Guesses for many requests at once; what it keeps of them lies in blocks of the same numbers as the model's own."""

    reads_states: bool

    def draft(self, continuations: Sequence[Continuation], states: Tensor | None) -> list[Draft]:
        """For each no branch of more than `count` guesses. `states` are the forward's, [N, d], if this drafter reads them."""
        ...

    def clear(self, blocks: list[int]) -> None:
        """Forget what these blocks hold."""
        ...

    def reserve(self) -> None:
        """The pool has another number of blocks now, and all are empty."""
        ...


class MedusaDrafter:
    """Every guess from the state of the last position alone: nothing is kept."""

    reads_states = True

    def __init__(self, heads: MedusaHeads, draw: Draw) -> None:
        self._heads = heads
        self._draw = draw

    def draft(self, continuations: Sequence[Continuation], states: Tensor | None) -> list[Draft]:
        assert states is not None
        guesses = [Guesses() for _ in continuations]
        for head in range(self._heads.depths):
            going = [i for i, one in enumerate(continuations) if one.count > head == len(guesses[i].chain)]
            if not going:
                break
            features = states[[continuations[i].states[-1] for i in going]]
            places = [continuations[i].start + len(continuations[i].tokens) + head for i in going]
            _extend(guesses, continuations, going, self._heads.logits(features, head), places, self._draw)
        return [comb(each.chain, each.others) for each in guesses]

    def clear(self, blocks: list[int]) -> None:
        pass

    def reserve(self) -> None:
        pass


class CachedDrafter:
    """A decoder with keys and values of its own, which guesses one token after another: a smaller model, or a `module` whose
    input at a position joins the features there with the token behind it, and whose states are the next features.

    A position of the smaller model is computed when its token is known, one of the module when the token behind it is.
    What others share of a block may have been computed with another token behind its last one: less is then guessed right.
    While nothing is guessed for a request, its positions are put off, and computed many at a time.
    """

    def __init__(
        self, forward: Forward, cache: PagedCache, vocabulary: int, known: int, longest: int, draw: Draw,
        module: FeatureModule | None = None,
    ) -> None:  # fmt: skip
        """`vocabulary` of the model that verifies; tokens from `known` on and positions from `longest` on are not known to
        this one."""
        self.reads_states = module is not None
        self._forward = forward
        self._cache = cache
        self._vocabulary = vocabulary
        self._known = known
        self._longest = longest
        self._draw = draw
        self._module = module

    def draft(self, continuations: Sequence[Continuation], states: Tensor | None) -> list[Draft]:
        guesses = [Guesses() for _ in continuations]
        ahead = 1 if self._module is not None else 0
        going: list[int] = []
        moves: list[TokenMove] = []
        features: list[Tensor] = []
        for i, one in enumerate(continuations):
            # A prompt may hold ids of the model's own padding: to this decoder any token says as little.
            tokens = tuple(token if token < self._known else 0 for token in one.tokens[ahead:])
            fitting = tokens[: max(0, self._room(one) - one.start)]
            if not fitting:
                continue
            wanted = one.count > 0 and len(fitting) == len(tokens)
            own = [] if self._module is None or states is None else [states[list(one.states[: len(fitting)])]]
            start, fitting, own = _with_deferred(one, fitting, own)
            if one.count == 0 and len(fitting) <= MOST_DEFERRED:
                put_off = fitting if ahead else fitting[:-1]  # a smaller model meets its last token again
                one.deferred.start, one.deferred.tokens, one.deferred.features = start, put_off, own
                continue
            one.deferred.tokens, one.deferred.features = (), []
            going.append(i)
            moves.append(_move(one, fitting, start, wanted))
            features += own
        last = torch.cat(features) if features else None
        while moves:
            packed = PackedRows.of(moves, self._cache.pool.block_size)
            output = self._forward(packed, self._inputs(packed.tokens, last), states=self._module is not None)
            self._forget_unsound(moves, output.finite)
            reading = [i for i, move in zip(going, moves, strict=True) if move.rows[0].wanted]
            if not reading:
                break
            before = [len(guesses[i].chain) for i in reading]
            places = [
                continuations[i].start + len(continuations[i].tokens) + had for i, had in zip(reading, before, strict=True)
            ]
            _extend(guesses, continuations, reading, self._fitted(output.logits), places, self._draw)
            kept = []
            following = []
            for at, (i, had) in enumerate(zip(reading, before, strict=True)):
                one = continuations[i]
                place = one.start + len(one.tokens) - ahead + had
                if had < len(guesses[i].chain) < one.count and place < self._room(one):
                    kept.append(at)
                    following.append(_move(one, (guesses[i].chain[-1],), place, True))
            if output.states is not None:
                last = output.states[[packed.wanted[at] for at in kept]]
            going, moves = [reading[at] for at in kept], following
        return [comb(each.chain, each.others) for each in guesses]

    def clear(self, blocks: list[int]) -> None:
        self._cache.clear(blocks)

    def reserve(self) -> None:
        self._cache.reserve()

    def _room(self, one: Continuation) -> int:
        """The first position that its blocks do not cover, or that this decoder does not know."""
        return min(len(one.blocks) * self._cache.pool.block_size, self._longest)

    def _inputs(self, tokens: list[int], features: Tensor | None) -> Tensor | None:
        if self._module is None:
            return None
        assert features is not None
        embeddings = self._forward.embed(torch.tensor(tokens, device=features.device))
        return self._module.join(embeddings.to(self._module.eh_proj.weight.dtype), features)

    def _fitted(self, logits: Tensor) -> Tensor:
        """A smaller model may pad its vocabulary otherwise."""
        if logits.shape[1] == self._vocabulary:
            return logits
        return F.pad(logits, (0, self._vocabulary - logits.shape[1]), value=float("-inf")).contiguous()

    def _forget_unsound(self, moves: Sequence[TokenMove], finite: Tensor) -> None:
        if bool(finite.all()):
            return
        at = 0
        for move in moves:
            size = len(move.rows[0].tokens)
            if not bool(finite[at : at + size].all()):
                self._cache.clear(self._cache.pool.unshared(move.blocks))
            at += size


def _with_deferred(
    one: Continuation, tokens: tuple[int, ...], features: list[Tensor]
) -> tuple[int, tuple[int, ...], list[Tensor]]:
    """Where to begin, the tokens from there on, and their features, with what was put off; that is lost where others have
    computed positions in between."""
    put_off = one.deferred
    if put_off.tokens and put_off.start + len(put_off.tokens) == one.start:
        return put_off.start, put_off.tokens + tokens, put_off.features + features
    return one.start, tokens, features


def _move(one: Continuation, tokens: tuple[int, ...], start: int, wanted: bool) -> TokenMove:
    row = TokenRow(Axis.EXPAND, tokens, start, "causal", True, (len(tokens) - 1,) if wanted else ())
    return TokenMove((row,), one.blocks, one.draws)


def _extend(
    guesses: list[Guesses], continuations: Sequence[Continuation], going: Sequence[int], logits: Tensor,
    places: Sequence[int], draw: Draw,
) -> None:  # fmt: skip
    """Guesses at one place more of each request, but where the logits are not finite: that one's draft ends."""
    sound = torch.isfinite(logits.sum(dim=-1)).tolist()
    asking = [continuations[i] for i in going]
    drawn = draw([one.draws for one in asking], logits, places, [one.width for one in asking])
    for i, tokens, whole in zip(going, drawn, sound, strict=True):
        if whole:
            guesses[i].chain.append(tokens[0])
            guesses[i].others.append(tokens[1:])
