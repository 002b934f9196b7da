"""Trees of guesses: how far they were right, and what can be made of them."""

from __future__ import annotations

from collections.abc import Sequence

from service.procedures.types import Draft


def accepted(draft: Draft, drawn: Sequence[int]) -> tuple[int, ...]:
    """Indices of the guesses that are what the model drew, in the order of the text.

    drawn[0] is the model's token behind the last committed one and drawn[1 + i] the one behind guess i, each drawn as if
    nothing had been guessed. They are followed while a guess equals the draw before it; the draw behind the last of these
    is the model's own too, so that one more token is committed than guesses are accepted.
    """
    path: list[int] = []
    at = -1
    while True:
        following = (i for i in range(at + 1, len(draft.tokens)) if draft.parents[i] == at and draft.tokens[i] == drawn[at + 1])
        at = next(following, -1)
        if at < 0:
            return tuple(path)
        path.append(at)


def comb(chain: Sequence[int], others: Sequence[Sequence[int]]) -> Draft:
    """A chain of guesses, and behind it those that could stand in place of each, with nothing behind them."""
    places = [at for at, tokens in enumerate(others) for _ in tokens]
    tokens = (*chain, *(token for each in others for token in each))
    return Draft(tokens, (*range(-1, len(chain) - 1), *(at - 1 for at in places)))


def branch(draft: Draft, at: int) -> tuple[int, ...]:
    """Indices of the guesses that lead to guess `at`, itself the last; none for -1."""
    path = []
    while at >= 0:
        path.append(at)
        at = draft.parents[at]
    return tuple(reversed(path))


def deepest(draft: Draft) -> int:
    """Guesses of the longest branch."""
    return max(_depths(draft), default=0)


def within(draft: Draft, depth: int) -> Draft:
    """The tree with no branch of more than `depth` guesses."""
    return draft if len(draft.tokens) <= depth else pruned(draft, [own <= depth for own in _depths(draft)])


def pruned(draft: Draft, keep: Sequence[bool]) -> Draft:
    """The tree without the guesses that are not to be kept and all behind them."""
    left: list[int] = []
    for i, parent in enumerate(draft.parents):
        if keep[i] and (parent < 0 or parent in left):
            left.append(i)
    return draft if len(left) == len(keep) else reordered(draft, left)


def reordered(draft: Draft, order: Sequence[int]) -> Draft:
    """The guesses of these indices, none before its parent."""
    place = {-1: -1} | {i: at for at, i in enumerate(order)}
    return Draft(tuple(draft.tokens[i] for i in order), tuple(place[draft.parents[i]] for i in order))


def _depths(draft: Draft) -> list[int]:
    depths: list[int] = []
    for parent in draft.parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 1)
    return depths
