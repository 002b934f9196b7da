"""The words that procedures, scheduler and workers share. Plain data, no device code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Literal, Protocol, Self

Attention = Literal["causal", "block", "full"]
"""How the text that a network has before it sees itself: each token those before it; blocks one another in that way, and
each all of itself; or everything everything."""

UNKNOWN = -1
"""In a row, the token that a forward before it is drawing, which nobody but the device knows yet."""


class Axis(StrEnum):
    EXPAND = "expand"
    REFINE = "refine"


@dataclass(frozen=True, slots=True)
class TokenRow:
    """Query tokens of one request in a packed forward.

    `tokens` stand at positions start, start+1, ... and see the cached prefix before `start`; among themselves they are
    `causal`, or a `block` that sees all of itself. `wanted` are the offsets whose next (causal) or own (block) token
    is to be read. Rows that `keep` leave their keys and values in the cache, which holds as far as their tokens are those
    that are committed afterwards; a canvas leaves nothing. `draw` numbers repeated draws at one position, so that each has
    random numbers of its own. The last `drafts` tokens are guesses: what is read at the token before each says whether it
    was right.

    Of block rows: the row sees the cached positions before `until` too, where that lies behind its own end; with a
    `block_length` it is several blocks of that many tokens, and a token sees all up to the end of its own; with `shift`,
    what is read at an offset is the next position's token, as in causal rows.

    In a `tree` of at most 64 tokens, token i stands at position start + depths[i], and sees the cached prefix and token j
    where bit j of visible[i] is set: its branch, which in the order of the row stands at depths 0, 1, 2, ... The first
    token is the last committed one; behind the guesses `asks` tokens are masks, whose own tokens are read. When it has run,
    the keys and values of those guesses that were right lie at their positions.

    `spread` asks for the entropy and the margin of what is read, and for the likeliest token. `heat`: what the request's
    temperature is multiplied by. `scored` are tokens that are known to follow the wanted offsets, one each: nothing is drawn
    there, but their log-probabilities are read.
    """

    axis: Axis
    tokens: tuple[int, ...]
    start: int
    mode: Literal["causal", "block", "tree"]
    keep: bool
    wanted: tuple[int, ...]
    draw: int = 0
    drafts: int = 0
    until: int | None = None
    block_length: int | None = None
    shift: bool = False
    depths: tuple[int, ...] = ()
    visible: tuple[int, ...] = ()
    asks: int = 0
    spread: bool = False
    scored: tuple[int, ...] = ()
    heat: float = 1.0

    @classmethod
    def tree(cls, token: int, start: int, draft: Draft, masks: int = 0, mask_token: int = 0) -> Self:
        """The last committed token at position `start`, guesses of what follows it, and behind each of all these a bundle
        of masks, which see one another and what leads to them. All are read but the first mask of a bundle: its token is
        the one that is read behind the guess before it."""
        visible, depths = [1], [0]
        for parent in draft.parents:
            depths.append(depths[parent + 1] + 1)
            visible.append(visible[parent + 1] | 1 << len(visible))
        points = len(visible)
        for point in range(points):
            bundle = visible[point] | ((1 << masks) - 1) << len(visible)
            visible += [bundle] * masks
            depths += range(depths[point] + 1, depths[point] + 1 + masks)
        asks = points * masks
        wanted = (*range(points), *(points + i for i in range(asks) if i % masks))
        tokens = (token, *draft.tokens, *[mask_token] * asks)
        return cls(
            Axis.EXPAND, tokens, start, "tree", True, wanted, drafts=points - 1, depths=tuple(depths), visible=tuple(visible),
            asks=asks,
        )  # fmt: skip

    @property
    def positions(self) -> Sequence[int]:
        """Where each token stands."""
        if self.mode == "tree":
            return [self.start + depth for depth in self.depths]
        return range(self.start, self.start + len(self.tokens))

    @property
    def stop(self) -> int:
        """The place behind all that the row writes or sees."""
        own = self.start + len(self.tokens)
        return own if self.until is None else max(own, self.until)

    @property
    def span(self) -> int:
        """How many tokens, from the first on, see all of one another."""
        return 1 if self.mode == "causal" else self.block_length or len(self.tokens)

    @property
    def reads_next(self) -> bool:
        """Whether what is read at an offset is the token behind it."""
        return self.mode == "causal" or self.shift

    def cut(self, room: int) -> int:
        """How many of the first query tokens, at most `room`, can be a chunk of a prefill; 0: none."""
        if self.mode == "tree" or (self.mode == "block" and self.block_length is None):
            return 0
        return min(room, len(self.tokens)) // self.span * self.span

    def head(self, length: int) -> TokenRow:
        """The first `length` query tokens, a number that `cut` gives."""
        assert 0 < length == self.cut(length)
        wanted = tuple(offset for offset in self.wanted if offset < length)
        drafts = max(0, self.drafts - (len(self.tokens) - length))
        return replace(self, tokens=self.tokens[:length], wanted=wanted, drafts=drafts, scored=self.scored[: len(wanted)])

    def with_drafts(self, count: int) -> TokenRow:
        """The row with no more than `count` of its guesses, the first ones: still a whole move."""
        if count >= self.drafts:
            return self
        if self.mode == "tree":
            return self.tree(self.tokens[0], self.start, self.draft().head(count), self.masks, self.tokens[-1])
        return self.head(len(self.tokens) - self.drafts + count)

    def alone(self) -> TokenRow:
        """The tree's last committed token, without guesses and masks."""
        return self.tree(self.tokens[0], self.start, Draft((), ()))

    def draft(self) -> Draft:
        """The guesses that this row verifies."""
        if self.mode == "tree":
            branches = self.visible[1 : 1 + self.drafts]
            parents = tuple((bits ^ 1 << i).bit_length() - 2 for i, bits in enumerate(branches, 1))
            return Draft(self.tokens[1 : 1 + self.drafts], parents)
        return Draft.chain(self.tokens[len(self.tokens) - self.drafts :])

    @property
    def masks(self) -> int:
        """Of a tree: how many stand behind each guess and behind the last committed token."""
        return self.asks // (1 + self.drafts)


@dataclass(frozen=True, slots=True)
class Reading:
    """What the network said at one wanted position: a token drawn there and its plain probability (temperature 1).

    Where the row asked, `entropy` is that of the distribution at the request's temperature, in nats (as for 1 where that is
    0), and `margin` what the `likeliest` token's plain probability leads the next one's by.
    Where they were asked for, `logprob` is the natural logarithm of its probability under the network's own logits,
    before any bias, penalty or filter, and `top` the likeliest tokens there with theirs, likeliest first.
    """

    token: int
    confidence: float
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    entropy: float | None = None
    margin: float | None = None
    likeliest: int | None = None


@dataclass(frozen=True, slots=True)
class Draft:
    """Guesses of the tokens that come next. `parents` are, for each, the index of the guess before it; -1 stands for the
    last committed token. A parent comes before its children; a chain is -1, 0, 1, ..."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...]

    @classmethod
    def chain(cls, tokens: tuple[int, ...]) -> Self:
        return cls(tokens, tuple(range(-1, len(tokens) - 1)))

    @property
    def is_chain(self) -> bool:
        return all(parent == i - 1 for i, parent in enumerate(self.parents))

    def head(self, count: int) -> Draft:
        """The first `count` guesses."""
        return self if count >= len(self.tokens) else Draft(self.tokens[:count], self.parents[:count])


@dataclass(slots=True)
class TokenState:
    """What a token request has so far: committed tokens (the prompt first), a provisional canvas behind them, and cached
    keys. `draft` are guesses that the next move verifies; they may be dropped at any time. `attention` is the network's,
    by blocks of `block_length`; with `shift` it says at a position what comes next.

    A canvas' noise is the mask token or, where there is none, random ones of `vocabulary` tokens, by `seed`. A token of
    `stops` ends the text from position `floor` on. A `conditioned` network takes in what was last read of a canvas, all of
    it; `guesses` are the likeliest tokens of its last forwards, where a rule looks back at them.
    """

    tokens: list[int]
    prompt_length: int
    limit: int
    mask_token: int | None = None
    attention: Attention = "causal"
    block_length: int | None = None
    shift: bool = False
    cached: int = 0
    canvas: list[int | None] = field(default_factory=list)
    canvas_step: int = 0
    draft: Draft | None = None
    seed: int = 0
    vocabulary: int = 0
    stops: frozenset[int] = frozenset()
    floor: int = 0
    conditioned: bool = False
    guesses: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def generated(self) -> int:
        return len(self.tokens) - self.prompt_length

    @property
    def keepable(self) -> int:
        """Committed tokens whose keys and values will not change: all, or where they see one another in blocks, whole blocks."""
        return len(self.tokens) // (self.block_length or 1) * (self.block_length or 1)

    def uncached_row(self, wanted: bool) -> TokenRow:
        """Everything that can be kept and that the cache lacks, as one row; behind its last position is read if `wanted`."""
        rest = tuple(self.tokens[self.cached : self.keepable])
        offsets = (len(rest) - 1,) if wanted else ()
        if self.attention == "causal":
            return TokenRow(Axis.EXPAND, rest, self.cached, "causal", True, offsets)
        return TokenRow(
            Axis.EXPAND, rest, self.cached, "block", True, offsets, block_length=self.block_length, shift=self.shift
        )  # fmt: skip

    def keeps(self, row: TokenRow) -> bool:
        """Whether this row's keys and values depend on nothing but the tokens up to their block's end, or are never shared."""
        if self.attention != "block":
            return row.mode != "block" or self.attention == "full"
        length = self.block_length
        return length is not None and row.block_length == length and not row.start % length and not len(row.tokens) % length


class TokenProcedure(Protocol):
    """Proposes a token request's next rows and folds what the network read back into its state.

    Rows of one move run in one forward: a later row sees the keys and values of the earlier ones. `fold` gets the
    readings of the last row only when every row ran whole, and changes `state.tokens` or `state.canvas`.
    """

    def propose(self, state: TokenState) -> list[TokenRow]: ...

    def fold(self, state: TokenState, readings: list[Reading]) -> None: ...

    def scratch(self, room: int) -> int:
        """Positions beyond the committed tokens that a move may write to the cache, `room` tokens before the limit."""
        ...
