"""How far guesses were right."""

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
