"""Verified drafting: tokens are guessed, and one forward says how far the guesses were right.

Every token is the model's own draw with the random numbers of its position, whatever was guessed: the draws are followed
while they equal the guesses, and the first that does not is kept too. So the text is the one that `autoregressive` gives
with the same seed, at every temperature, with any drafter and any number of guesses (coupling by shared random numbers;
Daliri, Musco and Suresh, arXiv 2408.07978). It is not the rule of Leviathan, Kalman and Matias (arXiv 2211.17192), which
accepts a little more often, but whose text hangs on what was guessed and so on the batch.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

from service.procedures.drafts import accepted, within
from service.procedures.prompt_lookup import PromptLookup
from service.procedures.types import Draft, Reading, TokenRow, TokenState

MOST_OF_A_TREE = 63
"""Guesses, so that they and the last committed token are the 64 tokens of a tree."""
MOST_BY_MASKS = 6
"""Guesses, so that they and a bundle of masks behind each fit into the 64 tokens of a tree."""
KEEPING = ("draft_model", "heads")
"""Drafters that keep keys and values of their own, under the numbers of the request's blocks."""


class SpeculativeParameters(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Parameters of `speculative`."""

    drafter: Annotated[
        Literal["ngram", "mask", "draft_model", "heads"],
        Meta(
            description="who guesses; ngram: what followed the last time that the text ended as it ends now; mask: the model "
            "itself, by mask tokens in the forward that verifies, 6 guesses at most; draft_model: a smaller model; heads: "
            "extra modules that read the model's hidden states"
        ),
    ] = "ngram"
    draft_tokens: Annotated[
        int,
        Meta(ge=1, le=32, description="most guesses a forward, fewer where they would not pay; by default 8, by masks 3"),
    ] | None = None
    adaptive: Annotated[
        bool, Meta(description="false: as many guesses as there are, also where they cost more than they save")
    ] = True
    width: Annotated[
        int,
        Meta(
            ge=1, le=4, description="guesses at one place, of which the best goes on as the others do not (by ngram all do); "
            "with draft_tokens a branch, 63 in all; by masks 1"
        ),
    ] = 1
    ngram_min: (
        Annotated[int, Meta(ge=1, le=8, description="fewest tokens alike, by the drafter ngram; 2 by default")] | None
    ) = None
    ngram_max: (
        Annotated[int, Meta(ge=1, le=8, description="most tokens compared, by the drafter ngram; 4 by default")] | None
    ) = None

    def __post_init__(self) -> None:
        """Fills in the drafter's defaults. Raises ValueError when another drafter's parameters are given."""
        if self.draft_tokens is None:
            msgspec.structs.force_setattr(self, "draft_tokens", 3 if self.drafter == "mask" else 8)
        assert self.draft_tokens is not None
        if self.drafter == "mask" and self.draft_tokens > MOST_BY_MASKS:
            raise ValueError(f"`draft_tokens` must be at most {MOST_BY_MASKS} by the drafter mask")
        if self.drafter == "mask" and self.width > 1:
            raise ValueError("`width` must be 1 by the drafter mask")
        if self.draft_tokens * self.width > MOST_OF_A_TREE:
            raise ValueError(f"`width` times draft_tokens, {self.draft_tokens}, must be at most {MOST_OF_A_TREE}")
        if self.drafter != "ngram":
            for name in ("ngram_min", "ngram_max"):
                if getattr(self, name) is not None:
                    raise ValueError(f"`{name}` is for the drafter ngram; the drafter is {self.drafter}")
            return
        shortest = self.ngram_min if self.ngram_min is not None else min(2, self.ngram_max or 2)
        longest = self.ngram_max if self.ngram_max is not None else max(4, shortest)
        if longest < shortest:
            raise ValueError(f"`ngram_max` must be at least ngram_min, {shortest}")
        msgspec.structs.force_setattr(self, "ngram_min", shortest)
        msgspec.structs.force_setattr(self, "ngram_max", longest)


def scratch_of_masks(guesses: int) -> int:
    """Places that so many guesses take with the bundles of masks, a mask more than guesses, behind each of them and behind the
    last committed token."""
    return (1 + guesses) * (2 + guesses) - 1


class Speculative:
    """One request's. The guesses are in its state; the lookup holds nothing but what its tokens say."""

    def __init__(self, parameters: SpeculativeParameters) -> None:
        self.parameters = parameters
        self._lookup: PromptLookup | None = None
        if parameters.drafter == "ngram":
            assert parameters.ngram_min is not None and parameters.ngram_max is not None
            self._lookup = PromptLookup(parameters.ngram_min, parameters.ngram_max, parameters.width)

    def propose(self, state: TokenState) -> list[TokenRow]:
        room = state.limit - len(state.tokens)
        most = self._most(room)
        if state.draft is None and self._lookup is not None:
            state.draft = self._lookup.guess(state.tokens, most)
        if state.draft is not None:
            state.draft = within(state.draft, most).head(self.scratch(room))
        guesses = state.draft or Draft((), ())
        if self.parameters.drafter == "mask" or not guesses.is_chain:
            return self._tree(state, guesses)
        row = state.uncached_row(wanted=True)
        first = row.wanted[0]
        wanted = tuple(range(first, first + len(guesses.tokens) + 1))
        return [replace(row, tokens=row.tokens + guesses.tokens, wanted=wanted, drafts=len(guesses.tokens))]

    def fold(self, state: TokenState, readings: list[Reading]) -> None:
        """`readings` are those behind the last committed token and behind every guess that the forward verified."""
        drawn = [reading.token for reading in readings]
        masked = self.parameters.drafter == "mask" and len(drawn) > 1  # else it ran alone, without guesses and masks
        bundle = self._bundle - 1 if masked else 0
        guesses = (state.draft or Draft((), ())).head(len(drawn) // (1 + bundle) - 1)
        path = accepted(guesses, drawn)
        point = path[-1] + 1 if path else 0
        state.tokens += [guesses.tokens[i] for i in path]
        state.tokens.append(drawn[point])
        behind = 1 + len(guesses.tokens) + point * bundle
        state.draft = Draft.chain(tuple(drawn[behind : behind + bundle])) if bundle else None

    def scratch(self, room: int) -> int:
        """Guesses, whose places do not go beyond the limit; but by masks the bundles behind all of them and behind the last
        committed token too."""
        if self.parameters.drafter == "mask":
            return scratch_of_masks(self._limit)
        return max(0, min(self._limit * self.parameters.width, room - 1))

    @property
    def _limit(self) -> int:
        assert self.parameters.draft_tokens is not None
        return self.parameters.draft_tokens

    @property
    def _bundle(self) -> int:
        """Masks behind a guess. The first stands where the model's own token will: the others guess what comes behind it."""
        return self._limit + 1

    def _most(self, room: int) -> int:
        """One token fewer than there is room for is guessed: the last is the model's own."""
        return max(0, min(self._limit, room - 1))

    def _tree(self, state: TokenState, guesses: Draft) -> list[TokenRow]:
        """A forward that verifies guesses of several branches. With masks it makes the next ones too: they follow each place
        where the guesses may turn wrong."""
        masks, mask_token = 0, 0
        if self.parameters.drafter == "mask":
            assert state.mask_token is not None
            masks, mask_token = self._bundle, state.mask_token
        uncached, start = state.uncached_row(wanted=False), len(state.tokens) - 1
        before = [uncached.head(len(uncached.tokens) - 1)] if len(uncached.tokens) > 1 else []
        return [*before, TokenRow.tree(state.tokens[-1], start, guesses, masks, mask_token)]
