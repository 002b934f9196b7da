"""Guesses from the text itself: what followed the last time that it ended as it ends now (prompt lookup decoding).

Saxena, "Prompt Lookup Decoding" (2023). Free, and right where a text repeats itself or its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence

from service.procedures.types import Draft


class PromptLookup:
    """The last places of every run of `shortest` to `longest` tokens of one text, which grows: a token costs as many steps
    as there are lengths, whatever came before, and about 250 bytes for each. Up to `width` places, which go on with
    different tokens."""

    def __init__(self, shortest: int, longest: int, width: int = 1) -> None:
        self._lengths = range(longest, shortest - 1, -1)
        self._width = width
        self._behind: dict[tuple[int, ...], tuple[int, ...]] = {}
        self._taken = 0

    def guess(self, tokens: Sequence[int], count: int) -> Draft:
        """Branches of `count` tokens that could follow: those behind the last earlier occurrences of the longest runs that
        end the text, no two of which begin alike.

        Where they reach the end of the text they go on with the guesses, so that a loop is continued. Empty without an
        occurrence. The tokens before those of the last call must be what they were.
        """
        self._take(tokens)
        begun: dict[int, int] = {}
        for length in self._lengths:
            if length <= len(tokens) and len(begun) < self._width:
                for place in self._behind.get(tuple(tokens[-length:]), ()):
                    begun.setdefault(tokens[place], place)
        guesses: list[int] = []
        parents: list[int] = []
        for found in list(begun.values())[: self._width]:
            first = len(guesses)
            for place in range(found, found + count):
                guesses.append(tokens[place] if place < len(tokens) else guesses[first + place - len(tokens)])
                parents.append(len(parents) - 1 if len(parents) > first else -1)
        return Draft(tuple(guesses), tuple(parents))

    def _take(self, tokens: Sequence[int]) -> None:
        """Notes the runs that have something behind them: all but those that end the text."""
        for stop in range(self._taken + 1, len(tokens)):
            for length in self._lengths:
                if length <= stop:
                    run = tuple(tokens[stop - length : stop])
                    others = [place for place in self._behind.get(run, ()) if tokens[place] != tokens[stop]]
                    self._behind[run] = (stop, *others[: self._width - 1])
        self._taken = max(self._taken, len(tokens) - 1)
